# SPDX-License-Identifier: Apache-2.0
"""A board on a fake KVM: how it is built, connected, and taken down."""

import ctypes
import errno
import gzip
import os
import struct
import threading
from pathlib import Path

import pytest
from fakes import kernels
from fakes.clock import FakeClock
from fakes.guests import DBCN, FCR, IER, LSR, RBR, echo, idle, prints, suspend
from fakes.kernel import FakeAia, FakeKernel, call, fail, mmio_read, mmio_write, reset, sbi
from fakes.threads import happens

from pyvmm import layout, outcome
from pyvmm.errors import HostError, KvmError, PyvmmError
from pyvmm.irqchip import KernelAia
from pyvmm.kvm import regs, uapi
from pyvmm.outcome import Outcome

RAM = layout.RAM_BASE
ALARM_LOW, ALARM_HIGH, IRQ_ENABLED = (layout.RTC_BASE + offset for offset in (0x08, 0x0C, 0x10))
SECOND = 1_000_000_000


def arm(when_ns):
    """What a guest does to have the clock's interrupt at ``when_ns``."""
    return [
        mmio_write(IRQ_ENABLED, 4, 1),
        mmio_write(ALARM_HIGH, 4, when_ns >> 32),
        mmio_write(ALARM_LOW, 4, when_ns & 0xFFFF_FFFF),
    ]


def answers(it, vm=0):
    return it.kernel.vms[vm].vcpus[0].answers


def process_fds():
    return os.listdir("/proc/self/fd")


@pytest.fixture
def clock(monkeypatch):
    """The wall clock of every board; it stands still."""
    clock = FakeClock(1000 * SECOND)
    monkeypatch.setattr("pyvmm.board.LoopClock", lambda loop: clock)
    return clock


def asleep(it):
    """An event: the guest of ``it``, which has not started, is suspended."""
    suspension = it.machine.prepare()._suspension
    sleeping, begin = threading.Event(), suspension.begin
    suspension.begin = lambda hart: (begin(hart), sleeping.set())
    return sleeping


def device_in_a_slot(board):
    [transport] = board.backplane.virtio.values()
    return transport, layout.VIRTIO_IRQ


def power_button(board):
    board.bus.read(layout.POWER_BASE, 4)  # it is made when it is looked at
    return board._power._transport, layout.POWER_IRQ


PULSING = [device_in_a_slot, power_button]


# Suspend


def test_alarm_wakes_a_suspended_guest(run, clock):
    it = run([*arm(clock.now_ns() + SECOND), suspend(), *prints(b"awake\n")])
    sleeping = asleep(it)
    it.start()
    happens(sleeping)
    clock.advance(2 * SECOND)
    assert it().reason == outcome.POWEROFF
    assert it.output == b"awake\n"


def test_suspend_returns_at_once_while_an_interrupt_is_asserted(run, clock):
    it = run([*arm(clock.now_ns() - SECOND), suspend(), *prints(b"awake\n")])
    assert it().reason == outcome.POWEROFF
    assert it.output == b"awake\n"


@pytest.mark.parametrize("device", PULSING)
def test_suspend_returns_at_once_while_a_pulse_has_not_been_acknowledged(run, device):
    it = run([suspend(), *prints(b"awake\n")], rng=[""], virtio_transport="mmio")
    transport, _ = device(it.machine.prepare())
    transport.queue_interrupt(0)
    assert it().reason == outcome.POWEROFF
    assert it.output == b"awake\n"


@pytest.mark.parametrize("console", ["serial", "sbi"])
def test_key_wakes_a_suspended_guest(run, console):
    it = run([suspend()], console=console)
    sleeping = asleep(it)
    it.start()
    happens(sleeping)
    os.write(it.keys, b"x")
    assert it().reason == outcome.POWEROFF


# Interrupts


@pytest.mark.parametrize("device", PULSING)
def test_plic_takes_virtio_mmio_by_its_edges(run, device):
    it = run(rng=[""], virtio_transport="mmio", irqchip="plic")
    board = it.machine.prepare()
    (transport, source), claim = device(board), layout.PLIC_BASE + 0x20_0004
    board.bus.write(layout.PLIC_BASE + 4 * source, 4, 1)
    board.bus.write(layout.PLIC_BASE + 0x2000 + source // 32 * 4, 4, 1 << source % 32)
    transport.queue_interrupt(0)
    assert board.bus.read(claim, 4) == source
    transport.queue_interrupt(0)  # told already, and not acknowledged: no edge
    board.bus.write(claim, 4, source)
    assert board.bus.read(claim, 4) == 0
    transport.config_interrupt()
    assert board.bus.read(claim, 4) == source
    transport.write(0x64, 4, 3)  # InterruptACK
    transport.queue_interrupt(0)  # an edge while the source is claimed
    assert board.bus.read(claim, 4) == 0
    board.bus.write(claim, 4, source)
    assert board.bus.read(claim, 4) == source
    assert it.kernel.vm.vcpus[0].interrupts == [True, False] * 3


# Console input


def test_break_that_a_full_fifo_refuses_comes_later_and_in_order_with_the_keys(run):
    refused, delivered = threading.Event(), threading.Event()
    listen = [mmio_write(IER, 1, 1), mmio_write(FCR, 1, 1)]
    read_all = [mmio_read(RBR, 1)] * 16
    read_rest = [mmio_read(LSR, 1), mmio_read(RBR, 1), mmio_read(LSR, 1), mmio_read(RBR, 1)]
    it = run(
        [
            *listen,
            call(lambda vcpu: os.write(it.keys, b"!")),
            call(lambda vcpu: happens(refused)),
            *read_all,
            call(lambda vcpu: happens(delivered)),
            *read_rest,
        ]
    )

    def send_break():
        done = it.machine.break_item()
        if not done:
            refused.set()
        return done

    def after_the_key():
        delivered.set()
        return True

    it.machine.on_input = lambda data: [b"0123456789abcdef", send_break, b"k", after_the_key]
    assert it().reason == outcome.POWEROFF
    *before, status, nothing, next_status, key = answers(it)
    assert bytes(before) == b"0123456789abcdef"
    assert (status & 0x11, nothing) == (0x11, 0)
    assert (next_status & 0x11, key) == (0x01, ord("k"))


def test_break_is_dropped_where_there_is_no_serial_console(run):
    delivered = threading.Event()
    it = run([call(lambda vcpu: happens(delivered)), sbi(DBCN, 1, 8, RAM, 0)], console="sbi")
    it.machine.on_input = lambda data: [data, lambda: not delivered.set()]
    it.machine.send_break()
    os.write(it.keys, b"key")
    assert it().reason == outcome.POWEROFF
    assert answers(it) == [(0, 3)]


def test_sbi_console_takes_more_keys_as_the_guest_reads_them(run):
    """The guest polls; more than fits between two polls waits outside."""
    full, all_in = threading.Event(), threading.Event()
    read = sbi(DBCN, 1, 4096, RAM, 0)
    it = run(
        [call(lambda vcpu: happens(full)), read, call(lambda vcpu: happens(all_in)), read], console="sbi"
    )
    items = [bytes(4096), lambda: not full.set(), bytes(100), lambda: not all_in.set()]
    it.machine.on_input = lambda data: items
    os.write(it.keys, b"!")
    assert it().reason == outcome.POWEROFF
    assert answers(it) == [(0, 4096), (0, 100)]


def then(it, *script):
    """A step after which the next board's guest does ``script``."""
    return call(lambda vcpu: it.kernel.scripts.update({0: list(script)}))


def test_key_typed_during_a_reboot_reaches_the_next_guest(run):
    it = run()
    it.kernel.scripts = {0: [then(it, echo), mmio_write(IER, 1, 1), reset()]}
    seen, offered = threading.Event(), threading.Event()

    def type_keys(note):
        if note == "interrupt controller: aia" and len(it.kernel.vms) == 2:
            os.write(it.keys, b"kq")
            happens(seen)
            it.machine._loop.call_soon(offered.set)
            happens(offered)

    def filter(data):
        seen.set()
        return [data]

    it.on_note, it.machine.on_input = type_keys, filter
    assert it().reason == outcome.POWEROFF
    assert it.output == b"k"


# Taking it down


def test_alarm_of_one_guest_does_not_fire_into_the_next(run, clock):
    pending = []
    note_pending = call(lambda vcpu: pending.append(len(clock.pending)))
    it = run()
    it.kernel.scripts = {
        0: [then(it, note_pending), *arm(clock.now_ns() + SECOND), note_pending, reset()],
    }
    assert it().reason == outcome.POWEROFF
    assert pending == [1, 0]


def test_wire_is_lowered_before_the_controller_goes(run, clock):
    it = run(arm(clock.now_ns() - SECOND))
    assert it().reason == outcome.POWEROFF
    assert it.kernel.vm.lines == [(layout.RTC_IRQ, 1), (layout.RTC_IRQ, 0)]


def test_everything_is_closed_even_when_closing_one_thing_fails(run, monkeypatch):
    real = KernelAia.close

    def close(chip):
        real(chip)
        raise KvmError("KVM_SOMETHING", errno.EIO)

    monkeypatch.setattr(KernelAia, "close", close)
    it = run()
    board = it.machine.prepare()
    with pytest.raises(KvmError, match="KVM_SOMETHING"):
        it.machine.close()
    assert it.kernel.open_fds == []
    assert board.memory.banks == ()


def test_board_can_be_closed_twice(run):
    board = run().machine.prepare()
    board.close()
    board.close()


# Building it


class Failing(FakeKernel):
    """Its ioctl number ``at``, counted from 0, fails."""

    def __init__(self, at):
        super().__init__()
        self.left = at

    def raw_ioctl(self, fd, request, argument=0):
        self.left -= 1
        if self.left == -1:
            self._errno.value = errno.EIO
            return -1
        return super().raw_ioctl(fd, request, argument)


@pytest.mark.parametrize("irqchip", ["auto", "aia", "plic"])
def test_whichever_ioctl_fails_nothing_is_left_behind(run, irqchip):
    failures = 0
    for at in range(10_000):
        kernel = Failing(at)
        before = process_fds()
        it = run(kernel=kernel, irqchip=irqchip, cpus=2)
        opened = set(process_fds()) - set(before)
        try:
            it.machine.prepare()
        except PyvmmError:
            failures += 1
            assert kernel.open_fds == []
            assert set(process_fds()) - set(before) == opened
        it.finish()
        assert process_fds() == before
        if kernel.left >= 0:
            break
    assert failures > 20


def test_fallback_gives_the_refused_machine_back(run, monkeypatch):
    monkeypatch.setattr(FakeAia, "_init", lambda *args: fail(errno.EINVAL))
    it = run()
    board = it.machine.prepare()
    assert board.chip.name == "plic"
    assert len(it.kernel.vms) == 2
    assert len(it.kernel.open_fds) == 3  # /dev/kvm, the machine, its hart


@pytest.fixture
def packed(tmp_path):
    path = tmp_path / "Image.gz"
    path.write_bytes(gzip.compress(kernels.image(os.urandom(3 << 20))))
    return str(path)


@pytest.mark.parametrize(
    ("error", "raised", "text"),
    [
        (OSError(errno.EIO, "Input/output error"), HostError, "The kernel .* Input/output error"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_interrupted_load_says_why_and_leaves_nothing(
    run, image, packed, monkeypatch, compressed, error, raised, text
):
    name = "pread" if compressed else "preadv"
    real, loading = getattr(os, name), []

    def interrupt(*args):
        if it.kernel.vms:  # not yet while the options are checked
            loading.append(args)
            raise error
        return real(*args)

    monkeypatch.setattr(os, name, interrupt)
    it = run(kernel_file=packed if compressed else image)
    before = process_fds()
    with pytest.raises(raised, match=text):
        it.machine.prepare()
    assert loading
    assert it.kernel.open_fds == []
    assert process_fds() == before


def test_first_error_is_the_one_that_is_said(run, monkeypatch):
    real = KernelAia.close

    def close(chip):
        real(chip)
        raise KvmError("KVM_SOMETHING", errno.EIO)

    def refuse(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(KernelAia, "close", close)
    monkeypatch.setattr(os, "preadv", refuse)
    with pytest.raises(HostError, match="The kernel"):
        run().machine.prepare()


@pytest.mark.parametrize("backend", ["anon", "memfd"])
def test_guest_finds_its_files_in_the_memory_that_kvm_was_given(run, image, tmp_path, backend):
    (tmp_path / "initrd").write_bytes(os.urandom(5000))
    dump = tmp_path / "tree"
    it = run(mem_backend=backend, initrd=str(tmp_path / "initrd"), dump_dtb=str(dump), params="quiet")
    it.machine.prepare()
    [slot] = it.kernel.vm.slots.values()
    assert (slot.gpa, slot.size, slot.flags) == (RAM, 16 << 20, 0)
    memory = ctypes.string_at(slot.host_address, slot.size)
    assert memory[0x20_0000:].startswith(Path(image).read_bytes())
    tree = it.kernel.vm.vcpus[0].registers[regs.core("a1")] - RAM
    assert memory[tree:].startswith(dump.read_bytes())
    initrd = RAM + memory.index((tmp_path / "initrd").read_bytes())
    assert struct.pack(">Q", initrd) in dump.read_bytes()
    assert struct.pack(">Q", initrd + 5000) in dump.read_bytes()
    assert b"console=ttyS0 earlycon=sbi quiet\0" in dump.read_bytes()


def test_every_power_on_has_its_own_random_seed(run, tmp_path):
    for name in ("one", "two"):
        run(dump_dtb=str(tmp_path / name)).machine.prepare()
    assert (tmp_path / "one").read_bytes() != (tmp_path / "two").read_bytes()


# Looking whether it can go on


@pytest.mark.parametrize(
    ("registers", "stopped"),
    [
        ({}, False),
        ({regs.core("pc"): 0x1000, regs.csr("satp"): 8 << 60}, False),
        ({regs.core("pc"): 0x1000}, True),
        ({regs.core("pc"): RAM + (16 << 20) - 2}, False),
    ],
)
def test_hart_that_can_go_on_is_left_alone(run, registers, stopped):
    it = run([idle])
    board = it.machine.prepare()
    vcpu = it.kernel.vm.vcpus[0]
    vcpu.registers.update(registers)
    if stopped:
        vcpu.mp_state = uapi.KVM_MP_STATE_STOPPED
    it.start()
    board.check_alive()
    checked = threading.Event()
    board.threads[0].post(checked.set)
    happens(checked)
    it.machine.end(Outcome(outcome.QUIT, "enough"))
    assert it().reason == outcome.QUIT


def test_every_hart_is_looked_at(run):
    it = run({0: [idle], 1: [idle]}, cpus=2)
    board = it.machine.prepare()
    it.kernel.vm.vcpus[1].mp_state = uapi.KVM_MP_STATE_RUNNABLE
    it.kernel.vm.vcpus[1].registers[regs.core("pc")] = RAM + (16 << 20)
    it.start()
    board.check_alive()
    end = it()
    assert end.reason == outcome.HUNG
    assert "CPU 1 runs at 0x81000000" in end.message
