# SPDX-License-Identifier: Apache-2.0
"""The same exits for the run loop in C and for its twin in Python: nothing but time may tell them apart.

A guest chooses address, data, length and direction of its accesses; here they are what no kernel would hand
over, too. Between its accesses the machine changes: devices come, go and move, the trace goes on and off,
stores are noted down, threads are kicked.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from queue import SimpleQueue

import pytest
from fakes.kernel import FakeKernel, shutdown
from fakes.lines import RecordingLine, RecordingSink
from fakes.threads import PATIENCE, in_time
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm import nativerun
from pyvmm.devices.uart8250 import Uart8250
from pyvmm.errors import BusError
from pyvmm.kvm import uapi
from pyvmm.kvm.coalesced import FIRST, LAST
from pyvmm.kvm.system import Kvm
from pyvmm.mmio.bus import Bus
from pyvmm.mmio.regs import Bit, Field, Reg, RegArray, RegisterDevice
from pyvmm.outcome import Outcome
from pyvmm.runner import VcpuThread

UART, SAMPLE, PROBE, TOP = 0x1000_0000, 0x1000_0100, 0x2000_0000, 2**64 - 0x100
FREE = 0x3000_0000


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


class Probe:
    """Not a register map: writes down what it is asked, and answers what no device should."""

    def __init__(self, log):
        self.lock = threading.Lock()
        self.log = log

    def read(self, offset, size):
        self.log.append(("read", offset, size, self.lock.locked()))
        return (-1, 2**64 + 7, True, offset, 2**130)[offset % 5]

    def write(self, offset, size, value):
        self.log.append(("write", offset, size, value, self.lock.locked()))
        if offset % 4 == 1:
            return lambda: self.log.append(("after", self.lock.locked()))
        return None


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
    """One vCPU's thread with three devices and a mapping that moves; what there was to see is in ``log``."""

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
        self.mapping = self.bus.map(PROBE, 0x1000, Probe(self.log), name="probe")
        self.serial = Serial(self.log)
        ends = SimpleQueue()
        self.thread = VcpuThread(
            self.opened[2], self.bus, None, self.serial, on_end=ends.put, on_error=ends.put
        )
        self.own = self.thread.handlers[uapi.KVM_EXIT_MMIO]
        self.thread.start()
        self.end = ends.get(timeout=PATIENCE)
        in_time(self.thread.join)

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
            vcpu.page[uapi.RUN_EXIT_REASON_OFFSET] = uapi.KVM_EXIT_MMIO
            machine.loading = 0 if self.is_write else min(self.length, 8)
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
        machine.serial.answers[UART + 5] = 0x60

    def _forget(self, machine, vcpu):
        machine.serial.answers.clear()

    def _trace(self, machine, vcpu):
        machine.thread.handlers[uapi.KVM_EXIT_MMIO] = machine.traced

    def _no_trace(self, machine, vcpu):
        machine.thread.handlers[uapi.KVM_EXIT_MMIO] = machine.own

    def _post(self, machine, vcpu):
        machine.thread.post(lambda: machine.log.append("posted"))
        return errno.EINTR  # as KVM_RUN ends for the kick

    def _again(self, machine, vcpu):
        return errno.EAGAIN

    def _csr(self, machine, vcpu):
        vcpu.page[uapi.RUN_EXIT_REASON_OFFSET] = uapi.KVM_EXIT_RISCV_CSR
        return 0

    def _fail(self, machine, vcpu):
        return self.argument


near = st.sampled_from([UART, SAMPLE, SAMPLE, SAMPLE, PROBE, FREE, TOP, 0])
offsets = st.one_of(
    st.sampled_from([0x00, 0x03, 0x05, 0x07, 0x08, 0x10, 0x14, 0x20, 0x60]), st.integers(-9, 0x70)
)
addresses = st.one_of(
    st.builds(lambda base, offset: (base + offset) % 2**64, near, offsets), st.integers(0, 2**64 - 1)
)
real_lengths = st.sampled_from([1, 2, 4, 8])
lengths = st.one_of(
    real_lengths, real_lengths, real_lengths, st.sampled_from([0, 3, 9, 64, 2**31, 2**32 - 1])
)
data = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 0xFF, 0xDEAD_BEEF, 2**64 - 1]))
accesses = st.builds(Access, addresses, data, lengths, st.sampled_from([0, 1, 0xFF]))
sound = st.builds(Access, addresses, data, real_lengths, st.sampled_from([0, 1]))
happenings = st.one_of(
    st.builds(Happening, st.just("move"), st.sampled_from([PROBE, FREE, UART - 0xFFC, 2**64 - 0x1000, 0])),
    st.builds(
        Happening,
        st.sampled_from(
            ["store", "know", "forget", "trace", "no_trace", "post", "again", "csr", "store", "know", "unmap"]
        ),
    ),
)
endings = st.builds(Happening, st.just("fail"), st.sampled_from([errno.EIO, errno.EFAULT, errno.ENOMEM]))
guests = st.builds(
    lambda steps, end: [*steps, *end],
    st.lists(st.one_of(sound, sound, sound, accesses, happenings), min_size=1, max_size=60),
    st.lists(endings, max_size=1),
)


def played(steps, *, in_c):
    machine = Machine(steps, in_c=in_c)
    try:
        return machine.seen()
    finally:
        machine.close()


@pytest.mark.skipif(not os.path.exists(nativerun.FILE), reason="the native module was not built")
@settings(deadline=None, max_examples=400)
@given(guests)
def test_twins_agree_on_everything(steps):
    assert played(steps, in_c=True) == played(steps, in_c=False)
