# SPDX-License-Identifier: Apache-2.0
"""A machine that plays exits to a vCPU's thread, run by C or by Python, and writes down all there is to see.

    assert played(steps, in_c=True) == played(steps, in_c=False)

A guest chooses address, data, length and direction of its accesses; here they are what no kernel would hand
over, too. Between its accesses the machine changes: devices come, go and move, the trace goes on and off,
stores are noted down, threads are kicked, and devices answer what no device should.
"""

from __future__ import annotations

import ctypes
import errno
import threading
from collections import deque
from queue import SimpleQueue

from fakes.kernel import U32, FakeKernel, shutdown
from fakes.lines import RecordingLine, RecordingSink
from fakes.threads import PATIENCE, in_time

from pyvmm import native
from pyvmm.devices.uart8250 import Uart8250
from pyvmm.errors import BusError
from pyvmm.kvm import uapi
from pyvmm.kvm.coalesced import FIRST, LAST
from pyvmm.kvm.system import Kvm
from pyvmm.mmio.bus import Bus
from pyvmm.mmio.ranges import Range
from pyvmm.mmio.regs import Bit, Field, Reg, RegArray, RegisterDevice
from pyvmm.outcome import Outcome
from pyvmm.ring import Ring
from pyvmm.runner import VcpuThread

UART, SAMPLE, PROBE, TOP = 0x1000_0000, 0x1000_0100, 0x2000_0000, 2**64 - 0x100
HUGE, HUGE_SIZE = 2**40, 2**40
FREE = 0x3000_0000
STATUS = 0x4000_0000


class Sample(RegisterDevice):
    """Registers of every make."""

    NAME = "sample"
    SIZE = 0x100
    CTRL = Reg(0x00, 32, fields={"on": Bit(0), "mode": Field(4, 8), "done": Bit(31, "r")})
    WIDE = Reg(0x08, 64, sizes=(1, 2, 4, 8))
    STATUS = Reg(0x10, 32, fields={"fired": Bit(0, "w1c"), "set": Bit(1, "w1s")})
    WORD = Reg(0x14, 16)
    TABLE = RegArray(0x20, 32, count=4, fields={"level": Field(0, 3)})
    PLAIN = RegArray(0x40, 32, count=4)
    BANKED = Reg(0x14, 16, when="CTRL.on")
    SUM = Reg(0x60, 32, access="r", on_read="_sum")
    ADD = Reg(0x60, 32, access="w", on_write="_add")
    FAIL = Reg(0x64, 32, on_write="_fail")

    def __init__(self):
        super().__init__()
        self.total = 0
        self.reset()

    def _sum(self):
        return self.total

    def _add(self, value):
        self.total += value  # beyond 32 bits in time

    def _fail(self, value):
        if value == 0xDEAD_BEEF:
            raise ZeroDivisionError


class Status(RegisterDevice):
    """INTERRUPT_STATUS and INTERRUPT_ACK as virtio over MMIO has them, with the C's function for them."""

    NAME = "status"
    SIZE = 0x1000
    INTERRUPT_STATUS = Reg(0x60, access="r", on_read="_read_status")
    INTERRUPT_ACK = Reg(0x64, access="w", on_write="_write_ack")

    def __init__(self):
        super().__init__()
        self._ring = Ring()
        self.word = ctypes.c_uint32()

    def answer_directly(self, mapping):
        function = native.address("pyvmm_virtio_status")
        mapping.answer_directly(0x60, 8, function, ctypes.addressof(self.word))

    def set_bits(self, bits):
        self._ring.set_bits32(ctypes.addressof(self.word), bits)

    def _read_status(self):
        return self._ring.load_acquire32(ctypes.addressof(self.word))

    def _write_ack(self, value):
        self._ring.clear_bits32(ctypes.addressof(self.word), value)


class Lock:
    """A device's lock; ``before`` is carried out once, by the next access."""

    def __init__(self):
        self._lock = threading.Lock()
        self.before = None
        self.locked = self._lock.locked
        self.release = self._lock.release

    def acquire(self):
        before, self.before = self.before, None
        if before:
            before()
        return self._lock.acquire()

    def __enter__(self):
        self._lock.acquire()

    def __exit__(self, *_):
        self.release()


class Probe:
    """Not a register map: writes down what it is asked, and answers what no device should.

    ``tricks`` come first: each is called once, and what it returns is the answer to a load.
    """

    def __init__(self, log):
        self.lock = Lock()
        self.log = log
        self.tricks = deque()

    def read(self, offset, size):
        self.log.append(("read", offset, size, self.lock.locked()))
        return self._trick((-1, 2**64 + 7, True, offset, 2**130)[offset % 5])

    def write(self, offset, size, value):
        self.log.append(("write", offset, size, value, self.lock.locked()))
        self._trick()
        return self._after if offset % 4 == 1 else None

    def _after(self):
        self.log.append(("after", self.lock.locked()))
        self._trick()

    def _trick(self, otherwise=None):
        return self.tricks.popleft()() if self.tricks else otherwise


class Sbi:
    """Answers all of its calls."""

    def __init__(self, log):
        self.log = log

    def call(self, extension, function, arguments):
        self.log.append(("sbi", extension, function, arguments))
        return 0, 0


class Serial:
    """What a vCPU's thread sees of the serial port's shortcut."""

    def __init__(self, log):
        self.log = log
        self.answers = {}
        self.page = (ctypes.c_char * 4096)()

    def settle(self):
        if self.page[FIRST] != self.page[LAST]:
            self.log.append("settled")
            self.page[FIRST] = self.page[LAST]


class Machine:
    """One vCPU's thread with devices, one of which moves; what there was to see is in ``log``."""

    def __init__(self, steps, *, in_c):
        self.log = []
        self.loading = 0
        script = [*(step.play(self) for step in steps), self.note_answer, shutdown()]
        self.kernel = FakeKernel(script, in_c=in_c)
        self.opened = [Kvm(kernel=self.kernel)]
        self.opened.append(self.opened[0].create_vm())
        self.opened.append(self.opened[1].create_vcpu(0))
        self.bus = Bus()
        self.uart = Uart8250(RecordingLine(), RecordingSink())
        self.sample = Sample()
        self.bus.map(UART, 8, self.uart, name="uart")
        self.bus.map(SAMPLE, 0x100, self.sample, name="sample")
        self.bus.map(TOP, 0x100, Probe(self.log), name="top")
        self.bus.map(HUGE, HUGE_SIZE, Probe(self.log), name="huge")
        self.status = Status()
        mapping = self.bus.map(STATUS, Status.SIZE, self.status, name="status")
        if in_c:
            self.status.answer_directly(mapping)
        self.probe = Probe(self.log)
        self.mapping = self.bus.map(PROBE, 0x1000, self.probe, name="probe")
        self.serial = Serial(self.log)
        ends = SimpleQueue()
        self.thread = VcpuThread(
            self.opened[2], self.bus, Sbi(self.log), self.serial, on_end=ends.put, on_error=ends.put
        )
        self.own = self.thread.handlers[uapi.KVM_EXIT_MMIO]
        self.thread.start()
        self.end = ends.get(timeout=PATIENCE)
        in_time(self.thread.join)

    def note_load(self, vcpu):
        """How many bytes the guest will get, if it is a load."""
        _, _, length, is_write = uapi.RUN_MMIO.unpack_from(vcpu.page, uapi.RUN_MMIO_OFFSET)
        self.loading = 0 if is_write else min(length, 8)

    def note_answer(self, vcpu):
        """What the kernel would give the guest for its last load."""
        if self.loading:
            at = uapi.RUN_MMIO_DATA_OFFSET
            self.log.append(vcpu.page[at : at + self.loading].hex())
            self.loading = 0

    def traced(self):
        self.log.append(("traced", *self.opened[2].mmio()))
        self.own()

    def close(self):
        for thing in reversed(self.opened):
            thing.close()

    def seen(self):
        """Everything that the twins have to agree on."""
        end = self.end
        return {
            "end": (end.reason, end.message) if isinstance(end, Outcome) else repr(end),
            "log": self.log,
            "exits": self.thread.exits,
            "accesses": self.bus.accesses(),
            "unclaimed": (self.bus.unclaimed.total, self.bus.unclaimed.straddling, self.bus.unclaimed.pages),
            "uart": (self.uart.state(), self.uart.odd),
            "sample": (self.sample.state(), self.sample.odd, self.sample.total),
            "status": (self.status.word.value, self.status.odd),
            "left": len(self.kernel.vm.vcpus[0].script),
        }


class Access:
    """An exit with this in the run page."""

    def __init__(self, address, data, length, is_write):
        self.address, self.data, self.length, self.is_write = address, data, length, is_write

    def __repr__(self):
        return f"Access({self.address:#x}, {self.data:#x}, {self.length}, {self.is_write})"

    def play(self, machine):
        def step(vcpu):
            machine.note_answer(vcpu)
            access = self.address, self.data, self.length, self.is_write
            uapi.RUN_MMIO.pack_into(vcpu.page, uapi.RUN_MMIO_OFFSET, *access)
            U32.pack_into(vcpu.page, uapi.RUN_EXIT_REASON_OFFSET, uapi.KVM_EXIT_MMIO)
            machine.note_load(vcpu)
            return 0

        return step


class Filled:
    """An exit with any reason, and anything in the run page's union."""

    def __init__(self, reason, fill):
        self.reason, self.fill = reason, fill

    def __repr__(self):
        return f"Filled({self.reason:#x}, {self.fill!r})"

    def play(self, machine):
        def step(vcpu):
            machine.note_answer(vcpu)
            U32.pack_into(vcpu.page, uapi.RUN_EXIT_REASON_OFFSET, self.reason)
            vcpu.page[uapi.RUN_MMIO_OFFSET : uapi.RUN_MMIO_OFFSET + len(self.fill)] = self.fill
            if self.reason == uapi.KVM_EXIT_MMIO:
                machine.note_load(vcpu)
            return 0

        return step


class Happening:
    """What happens on the machine's side while the guest runs; then the guest goes on."""

    def __init__(self, name, argument=0):
        self.name, self.argument = name, argument

    def __repr__(self):
        return f"Happening({self.name!r}, {self.argument:#x})"

    def play(self, machine):
        def step(vcpu):
            machine.note_answer(vcpu)
            return getattr(self, f"_{self.name}")(machine, vcpu)

        return step

    def _move(self, machine, vcpu):
        try:
            machine.mapping.move(self.argument)
        except BusError:
            machine.log.append("taken")

    def _unmap(self, machine, vcpu):
        machine.mapping.unmap()

    def _store(self, machine, vcpu):
        machine.serial.page[LAST] = (machine.serial.page[LAST][0] + 1) % 169

    def _know(self, machine, vcpu):
        machine.serial.answers[UART + 5] = self.argument

    def _forget(self, machine, vcpu):
        machine.serial.answers.clear()

    def _interrupt(self, machine, vcpu):
        machine.status.set_bits(self.argument)

    def _trace(self, machine, vcpu):
        machine.bus.direct.stop(machine)
        machine.thread.handlers[uapi.KVM_EXIT_MMIO] = machine.traced

    def _no_trace(self, machine, vcpu):
        machine.thread.handlers[uapi.KVM_EXIT_MMIO] = machine.own
        machine.bus.direct.resume(machine)

    def _post(self, machine, vcpu):
        machine.thread.post(lambda: machine.log.append("posted"))
        return errno.EINTR  # as KVM_RUN ends for the kick

    def _again(self, machine, vcpu):
        return errno.EAGAIN

    def _csr(self, machine, vcpu):
        U32.pack_into(vcpu.page, uapi.RUN_EXIT_REASON_OFFSET, uapi.KVM_EXIT_RISCV_CSR)
        return 0

    def _fail(self, machine, vcpu):
        return self.argument

    def _answer(self, machine, vcpu):
        machine.probe.tricks.append(lambda: self.argument)

    def _break(self, machine, vcpu):
        machine.probe.tricks.append(lambda: 1 // 0)

    def _scribble(self, machine, vcpu):
        """The next access to the probe overwrites the run page, as running the vCPU from within does."""

        def scribble():
            at = uapi.RUN_MMIO_OFFSET
            vcpu.page[at : at + uapi.RUN_MMIO.size] = bytes([self.argument]) * uapi.RUN_MMIO.size
            return self.argument

        machine.probe.tricks.append(scribble)

    def _race(self, machine, vcpu):
        """Somebody moves the probe while an access is on its way to it."""

        def move():
            try:
                machine.bus._move(machine.mapping, Range(self.argument, 0x1000))
            except BusError:
                machine.log.append("taken")

        machine.probe.lock.before = move


def played(steps, *, in_c):
    """All there was to see of a machine to which these happened."""
    machine = Machine(steps, in_c=in_c)
    try:
        return machine.seen()
    finally:
        machine.close()
