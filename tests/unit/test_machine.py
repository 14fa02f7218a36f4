# SPDX-License-Identifier: Apache-2.0
"""The whole machine on a fake KVM: how runs end, reboot, and clean up. Real guests are in tests/guest."""

import errno
import gzip
import os
import shutil
import socket
import threading
from pathlib import Path

import pytest
from fakes.guests import IER, LSR, echo, flood, idle, prints
from fakes.kernel import (
    FakeKernel,
    call,
    csr,
    fail,
    fail_entry,
    failure,
    mmio_read,
    mmio_write,
    reset,
    sbi,
    shutdown,
    system_event,
    wait_for_kick,
)
from fakes.threads import PATIENCE, Background, happens, in_time

from pyvmm import layout, outcome
from pyvmm.config import MachineConfig
from pyvmm.errors import ConfigError, HostError, KvmError, KvmUnavailable, MachineError
from pyvmm.kvm import regs, uapi
from pyvmm.machine import Machine
from pyvmm.outcome import Outcome
from pyvmm.runner import VcpuThread

RAM = layout.RAM_BASE


def test_output_arrives_and_power_off_ends_the_run(run):
    it = run([*prints(b"hello\n"), shutdown()])
    end = it()
    assert (end.reason, end.exit_code) == (outcome.POWEROFF, 0)
    assert it.output == b"hello\n"


def test_boot_hart_starts_at_the_kernel_with_its_id_and_the_device_tree(run):
    it = run()
    it()
    first = it.kernel.vms[0].vcpus[0].registers
    assert first[regs.core("pc")] == RAM + 0x20_0000
    assert first[regs.core("a0")] == 0
    assert first[regs.core("a1")] % 8 == 0
    assert first[regs.csr("scounteren")] == 7


def test_load_is_answered_by_the_device(run):
    it = run([mmio_read(LSR, 1), shutdown()])
    it()
    assert it.kernel.vms[0].vcpus[0].answers == [0x60]


def test_access_to_nowhere_reads_zero_and_is_counted(run):
    it = run([mmio_read(0x2000_0000, 4), mmio_write(0x2000_0000, 4, 1), shutdown()])
    board = it.machine.prepare()
    it()
    assert it.kernel.vms[0].vcpus[0].answers == [0]
    assert board.bus.unclaimed.total == 2


def test_reboot_starts_the_guest_again_on_a_new_board(run):
    it = run([reset()])
    scripts = iter([[*prints(b"one\n"), reset()], [*prints(b"two\n"), shutdown()]])
    it.kernel.scripts = {0: next(scripts)}
    it.kernel.scripts[0].insert(0, call(lambda vcpu: it.kernel.scripts.update({0: next(scripts)})))
    end = it()
    assert end.reason == outcome.POWEROFF
    assert it.output == b"one\ntwo\n"
    assert len(it.kernel.vms) == 2


def test_reboot_ends_the_run_when_asked_to(run):
    assert run([reset()], on_reboot="exit")().reason == outcome.REBOOT


def test_panic_ends_the_run_with_its_message(run):
    text = b"[ 1.0] Kernel panic - not syncing: Attempted to kill init!\r\n"
    text += b"[ 1.1] ---[ end Kernel panic - not syncing: Attempted to kill init! ]---\r\n"
    end = run([*prints(text), wait_for_kick()])()
    assert (end.reason, end.exit_code) == (outcome.PANIC, 255)
    assert end.message == "the guest panicked: Kernel panic - not syncing: Attempted to kill init!"


def test_reboot_after_a_panic_is_a_panic(run):
    end = run([*prints(b"Kernel panic - not syncing: oops\n"), reset()])()
    assert end.reason == outcome.PANIC


def test_panic_is_ignored_when_told_to_wait(run):
    text = b"---[ end Kernel panic - not syncing: x ]---\n"
    assert run([*prints(text), shutdown()], on_panic="wait")().reason == outcome.POWEROFF


def test_timeout_ends_a_guest_that_loops(run):
    end = run([wait_for_kick()] * 100, timeout="50ms")()
    assert (end.reason, end.exit_code) == (outcome.TIMEOUT, 124)


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EOPNOTSUPP, "cannot emulate"), (errno.EIO, "misaligned"), (errno.EFAULT, "cannot provide")],
)
def test_instruction_that_kvm_gives_up_on_ends_the_run_with_registers(run, number, words):
    end = run([failure(number)])()
    assert (end.reason, end.exit_code) == (outcome.HUNG, 254)
    assert words in end.message
    assert f"pc 0x{RAM + 0x20_0000:x} on CPU 0" in end.message
    assert "sepc" in end.detail


@pytest.mark.parametrize("step", [fail_entry(), system_event(3)])
def test_exit_that_cannot_be_answered_ends_the_run(run, step):
    assert run([step])().reason == outcome.HUNG


def test_seed_csr_gives_sixteen_random_bits_marked_as_entropy(run):
    it = run([csr(0x015), csr(0x015), csr(0x015), csr(0x151), shutdown()])
    it()
    *seeds, other = it.kernel.vms[0].vcpus[0].answers
    assert [seed >> 16 for seed in seeds] == [0x8000] * 3
    assert len(set(seeds)) > 1
    assert other == 0


def test_unknown_sbi_call_is_not_supported_and_the_guest_goes_on(run):
    it = run([sbi(0x0900_0000, 1, 2, 3), *prints(b"on\n"), shutdown()])
    assert it().reason == outcome.POWEROFF
    assert it.kernel.vms[0].vcpus[0].answers[0] == (-2, 0)
    assert it.output == b"on\n"


def test_suspended_guest_wakes_when_the_machine_ends(run):
    it = run([sbi(0x53555350, 0, 0, RAM, 0)], timeout="50ms")
    assert it().reason == outcome.TIMEOUT


def test_reader_that_goes_away_ends_the_run(run):
    it = run([*prints(b"x"), wait_for_kick(), wait_for_kick()])
    it.hang_up()
    it.start()
    end = in_time(it.machine.wait)
    assert (end.reason, end.exit_code) == (outcome.OUTPUT_CLOSED, 141)


def test_first_end_wins_and_close_stops_everything(run):
    it = run([wait_for_kick()] * 100, cpus=3)
    with it.machine:
        it.machine.start()
        it.machine.end(Outcome(outcome.SIGNAL, "ended by SIGTERM", signal=15))
        it.machine.end(Outcome(outcome.QUIT, "too late"))
        end = it.machine.wait()
        it.machine.close()
    assert end.exit_code == 128 + 15
    assert it.kernel.open_fds == []


def test_exception_in_a_handler_stops_the_machine_and_reaches_the_caller(run):
    def explode(vcpu):
        raise ZeroDivisionError

    end = run(kernel=FakeKernel([call(explode)], in_c=False))()
    assert end.reason == outcome.FAILED
    assert isinstance(end.error, ZeroDivisionError)


def test_hart_that_runs_where_there_is_no_memory_is_found(run):
    it = run([wait_for_kick()] * 100, timeout="60s")
    board = it.machine.prepare()
    it.start()
    it.kernel.vms[0].vcpus[0].registers[regs.core("pc")] = 0
    board.check_alive()
    end = it()
    assert end.reason == outcome.HUNG
    assert "CPU 0 runs at 0x0, where there is no memory" in end.message


def test_auto_falls_back_to_the_plic_when_the_kernel_has_no_aia(run):
    kernel = FakeKernel([shutdown()], capabilities={uapi.KVM_CAP_IRQCHIP: 0})
    it = run(kernel=kernel)
    it()
    assert "interrupt controller: plic" in it.notes
    assert any("no in-kernel AIA" in note for note in it.notes)


def test_explicit_aia_without_one_in_the_kernel_is_refused_with_a_sentence(run):
    it = run(kernel=FakeKernel(capabilities={uapi.KVM_CAP_IRQCHIP: 0}), irqchip="aia")
    with pytest.raises(ConfigError, match=r"no in-kernel AIA .* use --irqchip plic or aplic"):
        it.machine.start()
    assert it.kernel.open_fds == []


@pytest.mark.parametrize("chip", ["aia", "aplic", "plic"])
def test_uart_interrupt_reaches_the_controller(run, chip):
    ier = mmio_write(layout.UART_BASE + 1, 1, 2)
    script = [ier, shutdown()]
    if chip == "plic":
        enable = mmio_write(layout.PLIC_BASE + 0x2000, 4, 1 << layout.UART_IRQ)
        priority = mmio_write(layout.PLIC_BASE + 4 * layout.UART_IRQ, 4, 1)
        script = [enable, priority, *script]
    elif chip == "aplic":
        base = layout.APLIC_BASE
        setup = [(0, 0x100), (4, 6), (0x1EDC, layout.UART_IRQ), (0x3004, 1), (0x4000, 1)]
        script = [*(mmio_write(base + offset, 4, value) for offset, value in setup), *script]
    it = run(script, irqchip=chip)
    it()
    vm = it.kernel.vms[0]
    if chip == "aia":
        assert (layout.UART_IRQ, 1) in [tuple(line) for line in vm.lines]
    else:
        assert True in vm.vcpus[0].interrupts


def test_trace_names_device_register_and_fields_of_every_exit(run):
    script = [
        mmio_write(layout.UART_BASE + 1, 1, 2),
        mmio_read(LSR, 1),
        mmio_read(0x2000_0000, 2),
        shutdown(),
    ]
    it = run(script, trace="mmio,irq")
    it()
    lines = [line.split("] ", 1)[1] for line in it.trace]
    assert lines[0].startswith("cpu0   uart.IER write 1 0x2 thri=1 pc=0x")
    assert lines[1] == "irq    uart.irq1 raise"
    assert any(line.startswith("cpu0   uart.LSR read 1 0x60 thre=1 temt=1 pc=0x") for line in lines)
    assert any(line.startswith("cpu0   unclaimed.0x20000000 read 2 0x0 pc=0x") for line in lines)


def test_trace_names_vector_address_and_data_of_every_message(run):
    it = run([shutdown()], trace="irq", rng=[""])
    [transport] = it.machine.prepare().backplane.virtio.values()
    line = transport._msix.table.lines[1]
    line.program(layout.IMSIC_BASE, 7)
    line.signal()
    line.open()
    line.signal()
    it()
    shown = [text.split("] ", 1)[1] for text in it.trace]
    assert shown[:2] == [
        f"irq    rng0.msi1 signal 0x{layout.IMSIC_BASE:x} 0x7 (shut)",
        f"irq    rng0.msi1 signal 0x{layout.IMSIC_BASE:x} 0x7 (GSI {layout.NR_SOURCES + 1})",
    ]


def test_log_gets_everything_the_guest_printed(run, tmp_path):
    it = run([*prints(b"logged\n"), shutdown()], log=str(tmp_path / "log"))
    it()
    assert (tmp_path / "log").read_bytes() == b"logged\n"


def test_dumped_device_tree_is_the_guests(run, tmp_path):
    it = run(dump_dtb=str(tmp_path / "tree"))
    it()
    assert (tmp_path / "tree").read_bytes()[:4] == b"\xd0\x0d\xfe\xed"


@pytest.mark.parametrize("option", ["log", "dump_dtb"])
def test_file_that_cannot_be_written_is_one_sentence(image, option):
    config = MachineConfig(kernel=image, mem="16M", console="serial", **{option: "/nonexistent/file"})
    with pytest.raises(ConfigError, match=r"cannot be written to /nonexistent/file: there is no folder"):
        Machine(config, kernel=FakeKernel()).prepare()


def test_more_cpus_than_the_host_gives_is_one_sentence(run):
    it = run(kernel=FakeKernel(capabilities={uapi.KVM_CAP_MAX_VCPUS: 4}), cpus=5)
    with pytest.raises(ConfigError, match="at most 4 CPUs, not 5"):
        it.machine.start()
    assert it.kernel.open_fds == []


def test_no_kvm_is_reported_as_such(run):
    it = run(kernel=FakeKernel(open_error=errno.ENOENT))
    with pytest.raises(KvmUnavailable):
        it.machine.start()


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("disable_sbi", ["dbnc"], "KVM knows no SBI extension 'dbnc'. Did you mean dbcn?"),
        ("disable_isa", ["ssct"], "KVM knows no ISA extension 'ssct'. Did you mean sstc?"),
    ],
)
def test_unknown_extension_is_one_sentence_with_the_nearest_name(run, option, value, sentence):
    it = run(**{option: value})
    with pytest.raises(ConfigError) as caught:
        it.machine.start()
    assert str(caught.value) == sentence


def test_guest_without_ssaia_gets_a_plic(run):
    it = run(isa="host,-ssaia")
    it()
    assert "interrupt controller: plic" in it.notes


def test_aia_without_ssaia_is_refused(run):
    it = run(isa="host,-ssaia", irqchip="aia")
    with pytest.raises(ConfigError, match="--irqchip aia needs the extension ssaia"):
        it.machine.start()


def test_corrupt_compressed_kernel_is_one_sentence_and_leaves_nothing(run, image, tmp_path):
    whole = Path(image).read_bytes() + os.urandom(1 << 18)
    packed = gzip.compress(whole)
    (tmp_path / "bad.gz").write_bytes(packed[:100_000] + bytes(1000) + packed[101_000:])
    it = run(kernel_file=str(tmp_path / "bad.gz"), log=str(tmp_path / "log"))
    with pytest.raises(ConfigError, match=r"^The kernel .*bad\.gz "):
        it.machine.start()
    assert it.kernel.open_fds == []
    assert not (tmp_path / "log").exists()


# Reboots


def runnable(it, *harts):
    """Let more harts than the first run from the start."""
    it.machine.prepare()
    for hart in harts:
        it.kernel.vm.vcpus[hart].mp_state = uapi.KVM_MP_STATE_RUNNABLE


def then(it, *script):
    """A step after which the next board's guest does ``script``."""
    return call(lambda vcpu: it.kernel.scripts.update({0: list(script)}))


def reboot_started(it):
    """An event: a reboot is under way."""
    started = threading.Event()
    it.on_note = lambda text: started.set() if text == "the guest reboots" else None
    return started


REBOOT = Outcome(outcome.REBOOT, "the guest asked for a reboot")
QUIT = Outcome(outcome.QUIT, "enough")


def test_panic_printed_by_a_dying_hart_does_not_count_against_the_next_guest(run):
    it = run(cpus=2)
    rebooting, printed = threading.Event(), threading.Event()
    it.kernel.scripts = {
        0: [then(it, then(it, *prints(b"third\n")), reset()), reset()],
        1: [
            call(lambda vcpu: happens(rebooting)),
            *prints(b"Kernel panic - not syncing: too late\n"),
            call(lambda vcpu: printed.set()),
            idle,
        ],
    }

    def wait_for_the_panic(text):
        if text == "the guest reboots":
            rebooting.set()
            happens(printed)

    it.on_note = wait_for_the_panic
    runnable(it, 1)
    end = it()
    assert end.reason == outcome.POWEROFF
    assert len(it.kernel.vms) == 3
    assert it.output.endswith(b"third\n")


def test_two_harts_that_ask_at_once_get_one_reboot(run):
    it = run([idle])
    started = reboot_started(it)
    board = it.machine.prepare()
    it.kernel.scripts = {0: [call(lambda vcpu: happens(started))]}
    it.start()
    board._on_end(REBOOT)
    board._on_end(REBOOT)
    assert it().reason == outcome.POWEROFF
    assert it.notes.count("the guest reboots") == 1
    assert len(it.kernel.vms) == 2


def test_reboot_is_not_begun_before_every_hart_was_started(run, monkeypatch):
    """It would close harts whose threads are just being started."""
    begun = []
    real = VcpuThread.start

    def start(thread):
        begun.append(it.machine._state.locked())
        real(thread)

    monkeypatch.setattr(VcpuThread, "start", start)
    it = run(cpus=2)
    it.kernel.scripts = {0: [then(it), reset()], 1: [idle]}
    assert it().reason == outcome.POWEROFF
    assert begun == [True] * 4


def test_reboot_asked_for_after_the_end_is_ignored(run):
    it = run([idle])
    board = it.machine.prepare()
    it.start()
    it.machine.close()
    board._on_end(REBOOT)
    assert it.machine._rebooting is None
    assert len(it.kernel.vms) == 1


def test_machine_closed_during_a_reboot_never_starts_the_new_guest(run, monkeypatch):
    it = run([reset()])
    started, closing = reboot_started(it), threading.Event()
    real_release = it.machine._writer.release
    monkeypatch.setattr(it.machine._writer, "release", lambda: (closing.set(), real_release()))
    real_make = it.machine._make_board

    def make_board():
        if it.kernel.vms:
            happens(closing)
        return real_make()

    monkeypatch.setattr(it.machine, "_make_board", make_board)
    it.start()
    happens(started)
    in_time(it.machine.close)
    assert in_time(it.machine.wait).reason == outcome.QUIT
    assert [vm.has_run for vm in it.kernel.vms] == [True, False]
    assert it.kernel.open_fds == []


def test_reboot_that_fails_ends_the_run_with_the_reason(run, image):
    it = run([call(lambda vcpu: os.unlink(image)), reset()])
    end = it()
    assert (end.reason, end.exit_code) == (outcome.FAILED, 125)
    assert isinstance(end.error, ConfigError)
    assert "does not exist" in end.message


def test_reboot_needs_no_file_that_was_opened_before(run, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    it = run(log=f"{folder}/log")

    def remove(vcpu):
        shutil.rmtree(folder)
        it.kernel.scripts = {0: [shutdown()]}

    it.kernel.scripts = {0: [call(remove), reset()]}
    assert it().reason == outcome.POWEROFF


# A reader that takes nothing


@pytest.fixture
def no_patience(monkeypatch):
    """Readers have no time after the end of a run that was ended by force."""
    monkeypatch.setattr("pyvmm.machine._PATIENCE", 0.0)


def stalled(it):
    """An event: a vCPU waits for room in the console's buffer."""
    waiting = threading.Event()
    writer = it.machine._writer
    wait = writer._wait_for_room
    writer._wait_for_room = lambda: (waiting.set(), wait())
    return waiting


def test_close_lets_a_vcpu_go_that_waits_for_a_reader(run, no_patience):
    it = run([flood])
    waiting = stalled(it)
    it.start()
    happens(waiting)
    in_time(it.machine.close)


def test_run_can_end_while_a_reboot_waits_for_a_reader(run, no_patience):
    """A hart that waits for room keeps the old board from closing until the machine is closed."""
    it = run(cpus=2)
    waiting, rebooting = stalled(it), reboot_started(it)
    it.kernel.scripts = {0: [call(lambda vcpu: happens(waiting)), reset()], 1: [flood]}
    runnable(it, 1)
    it.start()
    happens(rebooting)
    it.machine.end(Outcome(outcome.TIMEOUT, "too long"))
    assert in_time(it.machine.wait).reason == outcome.TIMEOUT
    in_time(it.machine.close)
    assert it.kernel.open_fds == []


def test_reader_that_goes_away_is_noticed_without_any_output(run):
    it = run([idle])
    it.start()
    it.hang_up()
    assert in_time(it.machine.wait).reason == outcome.OUTPUT_CLOSED


def test_output_to_a_file_needs_no_watching(image, tmp_path):
    with (tmp_path / "output").open("wb") as file:
        kernel = FakeKernel(prints(b"filed\n"))
        with Machine(
            MachineConfig(kernel=image, console="serial"), output_fd=file.fileno(), kernel=kernel
        ) as machine:
            machine.start()
            assert machine.wait().reason == outcome.POWEROFF
    assert (tmp_path / "output").read_bytes() == b"filed\n"


def test_one_descriptor_can_be_input_and_output(image):
    ours, guests = socket.socketpair()
    ours.settimeout(PATIENCE)
    with ours, guests:
        fd = guests.fileno()
        kernel = FakeKernel([*prints(b"?"), echo])
        with Machine(
            MachineConfig(kernel=image, console="serial"), input_fd=fd, output_fd=fd, kernel=kernel
        ) as machine:
            machine.start()
            assert ours.recv(1) == b"?"
            ours.send(b"kq")
            assert machine.wait().reason == outcome.POWEROFF
        assert ours.recv(1) == b"k"


def test_output_that_cannot_be_written_ends_the_run_as_the_hosts_failure(image):
    with open("/dev/full", "wb") as full:
        kernel = FakeKernel([*prints(b"x"), idle])
        with Machine(
            MachineConfig(kernel=image, console="serial"), output_fd=full.fileno(), kernel=kernel
        ) as machine:
            machine.start()
            end = machine.wait()
    assert (end.reason, end.exit_code) == (outcome.FAILED, 125)
    assert isinstance(end.error, HostError)
    assert end.message == "The console's output cannot be written: No space left on device."


def test_log_that_cannot_be_written_is_warned_of_and_the_guest_goes_on(run):
    it = run([*prints(b"hello\n"), shutdown()], log="/dev/full")
    assert it().reason == outcome.POWEROFF
    assert it.output == b"hello\n"
    assert it.warnings == ["the log /dev/full ends here: No space left on device"]


def test_log_is_closed_at_the_end(run, tmp_path):
    before = os.listdir("/proc/self/fd")
    it = run(log=str(tmp_path / "log"))
    it()
    it.finish()
    assert os.listdir("/proc/self/fd") == before


# Looking whether the guest can go on


@pytest.fixture
def often(monkeypatch):
    """Looks all the time."""
    monkeypatch.setattr("pyvmm.machine._HANG_CHECKS", (0.0, 0.001))


def lost(vcpu):
    """The guest jumps to nowhere."""
    vcpu.registers[regs.core("pc")] = 0


def test_hang_is_found_without_being_asked(run, often):
    it = run([idle])
    it.machine.prepare()
    lost(it.kernel.vm.vcpus[0])
    assert it().reason == outcome.HUNG


def test_hang_that_comes_later_is_found_too(run, often):
    """The first look, which kicks it out of its first sleep, finds nothing."""
    assert run([wait_for_kick(), call(lost), idle])().reason == outcome.HUNG


def test_hang_after_a_reboot_is_found(run, often, monkeypatch):
    it = run()
    it.kernel.scripts = {0: [then(it, call(lost), idle), reset()]}
    looks, real = [], Machine._check_later
    three = threading.Event()

    def count(machine, number):
        looks.append(number)
        if it.machine._board is None and len(looks) > 3:
            three.set()
        real(machine, number)

    monkeypatch.setattr(Machine, "_check_later", count)
    it.on_note = lambda text: happens(three) if text == "the guest reboots" else None
    assert it().reason == outcome.HUNG
    assert looks[:3] == [0, 1, 2]


# The trace, switched on and off


def test_trace_starts_at_the_first_key_and_is_switched_off_and_on_by_the_next(run):
    it = run()
    toggle = call(lambda vcpu: it.machine.toggle_trace())
    look = mmio_read(LSR, 1)
    it.kernel.scripts = {0: [look, toggle, look, toggle, look, toggle, look, sbi(0x0900_0000, 0)]}
    it()
    assert [line.split()[2:4] for line in it.trace] == [
        ["cpu0", "uart.LSR"],
        ["cpu0", "uart.LSR"],
        ["cpu0", "sbi.0x9000000.0"],
    ]
    assert it.machine.trace.summary()[0].split() == ["uart", "2", "read"]


def test_trace_that_was_asked_for_is_switched_off_first(run):
    it = run(trace="mmio")
    toggle = call(lambda vcpu: it.machine.toggle_trace())
    look = mmio_read(LSR, 1)
    it.kernel.scripts = {0: [look, toggle, look]}
    it()
    assert len(it.trace) == 1


def test_trace_goes_on_after_a_reboot(run):
    it = run()
    toggle = call(lambda vcpu: it.machine.toggle_trace())
    it.kernel.scripts = {0: [then(it, mmio_read(LSR, 1)), toggle, reset()]}
    it()
    assert len(it.trace) == 1


def test_trace_that_is_off_stays_off_after_a_reboot_and_can_be_switched_on(run):
    it = run(trace="mmio")
    toggle = call(lambda vcpu: it.machine.toggle_trace())
    look = mmio_read(LSR, 1)
    it.kernel.scripts = {0: [then(it, look, toggle, look, look), look, toggle, look, reset()]}
    it()
    assert len(it.trace) == 3


def test_trace_that_is_switched_during_a_reboot_is_the_next_guests(run):
    it = run(trace="mmio")
    look = mmio_read(LSR, 1)
    it.kernel.scripts = {0: [then(it, look, look), look, reset()]}
    it.on_note = lambda text: it.machine.toggle_trace() if text == "the guest reboots" else None
    it()
    assert len(it.trace) == 1


def test_mark_comes_after_what_was_traced_before(run):
    it = run(trace="mmio")
    mark = call(lambda vcpu: it.machine.mark_trace("the disk"))
    look = mmio_read(LSR, 1)
    it.kernel.scripts = {0: [look, mark, look]}
    it()
    assert [line.split()[2:4] for line in it.trace] == [
        ["cpu0", "uart.LSR"],
        ["mark", "the"],
        ["cpu0", "uart.LSR"],
    ]
    with pytest.raises(MachineError, match="has ended"):
        it.machine.mark_trace("too late")


def test_guest_that_is_not_traced_cannot_be_marked(run):
    with pytest.raises(MachineError, match="not traced; start it with --trace"):
        run().machine.mark_trace("here")


# What the host does to it


def failing_once(vcpu, request, number):
    """The next ioctl ``request`` on the machine fails."""
    vm = vcpu.vm
    real = vm.ioctls[request]

    def refuse(argument):
        vm.ioctls[request] = real
        fail(number)

    vm.ioctls[request] = refuse


def test_ioctl_that_fails_on_behalf_of_a_guest_is_the_hosts_failure(run):
    refuse = call(lambda vcpu: failing_once(vcpu, uapi.KVM_IRQ_LINE, errno.EIO))
    end = run([refuse, mmio_write(IER, 1, 2), idle])()
    assert (end.reason, end.exit_code) == (outcome.FAILED, 125)
    assert isinstance(end.error, KvmError)
    assert "KVM_IRQ_LINE failed: Input/output error" in end.message


def test_host_without_memory_is_the_hosts_failure(run):
    end = run([failure(errno.ENOMEM)])()
    assert (end.reason, end.exit_code) == (outcome.FAILED, 125)
    assert end.error.errno == errno.ENOMEM


class Mortal(FakeKernel):
    """Once KVM_RUN has failed, every ioctl does."""

    dead = False

    def _answer(self, fd, request, argument):
        if self.dead:
            self._errno.value = errno.EIO
            return -1
        result = super()._answer(fd, request, argument)
        self.dead = result < 0 and request == uapi.KVM_RUN and self._errno.value != errno.EINTR
        return result


@pytest.mark.parametrize("number", [errno.EIO, errno.EFAULT])
def test_machine_that_kvm_declared_dead_still_ends_the_run(run, number):
    """Also while a wire is high, which nobody can lower any more."""
    it = run(kernel=Mortal([mmio_write(IER, 1, 2), failure(number)]))
    end = it()
    assert (end.reason, end.exit_code) == (outcome.HUNG, 254)
    assert "pc unknown on CPU 0" in end.message


# Around the run


def test_two_machines_run_side_by_side(run):
    first_runs, second_ended = threading.Event(), threading.Event()
    one = run([call(lambda vcpu: first_runs.set()), call(lambda vcpu: happens(second_ended)), *prints(b"1")])
    two = run([call(lambda vcpu: happens(first_runs)), *prints(b"2"), reset()])
    two.kernel.scripts[0].insert(0, then(two, *prints(b"2"), shutdown()))
    one.start()
    assert two().reason == outcome.POWEROFF
    second_ended.set()
    assert one().reason == outcome.POWEROFF
    assert (one.output, two.output) == (b"1", b"22")


def test_machine_needs_no_main_thread(run):
    it = run([*prints(b"hello\n"), reset()], on_reboot="exit")
    assert in_time(it).reason == outcome.REBOOT
    assert it.output == b"hello\n"


def test_everybody_who_waits_sees_the_same_end(run):
    it = run([idle])
    it.start()
    waiting = [Background(it.machine.wait) for _ in range(3)]
    it.machine.end(QUIT)
    assert {id(thread.result()) for thread in waiting} == {id(QUIT)}
    assert in_time(it.machine.wait) is QUIT


def test_end_before_the_start_counts(run):
    it = run([idle])
    it.machine.end(QUIT)
    assert it() is QUIT


def test_machine_that_never_started_can_be_closed(run):
    it = run()
    it.machine.prepare()
    in_time(it.machine.close)
    in_time(it.machine.close)
    assert in_time(it.machine.wait).reason == outcome.QUIT


def test_prepared_machine_is_prepared_once(run):
    it = run()
    assert it.machine.prepare() is it.machine.prepare()
    it()
    assert len(it.kernel.vms) == 1


def test_break_between_two_boards_is_dropped(run):
    assert run().machine.break_item()


@pytest.mark.parametrize("option", ["log", "dump_dtb"])
def test_output_that_would_overwrite_the_kernel_is_refused(run, image, option):
    before = Path(image).read_bytes()
    it = run(**{option: image})
    with pytest.raises(ConfigError, match="would be written over, and the guest needs it"):
        it.machine.start()
    assert Path(image).read_bytes() == before
