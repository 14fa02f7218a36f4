# SPDX-License-Identifier: Apache-2.0
"""The whole machine on a fake KVM: how runs end, reboot, and clean up. Real guests are in tests/guest."""

import errno
import gzip
import os
from pathlib import Path

import pytest
from fakes.guests import LSR, prints
from fakes.kernel import (
    FakeKernel,
    call,
    csr,
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

from pyvmm import layout, outcome
from pyvmm.config import MachineConfig
from pyvmm.errors import ConfigError, KvmUnavailable
from pyvmm.kvm import regs, uapi
from pyvmm.machine import Machine
from pyvmm.outcome import Outcome

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
    counted = []
    with it.machine:
        board = it.machine.prepare()
        it.machine.start()
        it.machine.wait()
        counted.append(board.bus.unclaimed.total)
    assert it.kernel.vms[0].vcpus[0].answers == [0]
    assert counted == [2]


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
    with it.machine:
        it.hang_up()
        it.machine.start()
        end = it.machine.wait()
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

    end = run([call(explode)])()
    assert end.reason == outcome.FAILED
    assert isinstance(end.error, ZeroDivisionError)


def test_hart_that_runs_where_there_is_no_memory_is_found(run):
    it = run([wait_for_kick()] * 100, timeout="60s")
    with it.machine:
        board = it.machine.prepare()
        it.machine.start()
        it.kernel.vms[0].vcpus[0].registers[regs.core("pc")] = 0
        board.check_alive()
        end = it.machine.wait()
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
    with it.machine, pytest.raises(ConfigError, match=r"no in-kernel AIA .* use --irqchip plic or aplic"):
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
    config = MachineConfig(kernel=image, mem="16M", **{option: "/nonexistent/file"})
    with pytest.raises(ConfigError, match=r"cannot be written to /nonexistent/file: No such file"):
        Machine(config, kernel=FakeKernel()).prepare()


def test_more_cpus_than_the_host_gives_is_one_sentence(run):
    it = run(kernel=FakeKernel(capabilities={uapi.KVM_CAP_MAX_VCPUS: 4}), cpus=5)
    with it.machine, pytest.raises(ConfigError, match="at most 4 CPUs, not 5"):
        it.machine.start()
    assert it.kernel.open_fds == []


def test_no_kvm_is_reported_as_such(run):
    it = run(kernel=FakeKernel(open_error=errno.ENOENT))
    with it.machine, pytest.raises(KvmUnavailable):
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
    with it.machine, pytest.raises(ConfigError) as caught:
        it.machine.start()
    assert str(caught.value) == sentence


def test_guest_without_ssaia_gets_a_plic(run):
    it = run(isa="host,-ssaia")
    it()
    assert "interrupt controller: plic" in it.notes


def test_aia_without_ssaia_is_refused(run):
    it = run(isa="host,-ssaia", irqchip="aia")
    with it.machine, pytest.raises(ConfigError, match="--irqchip aia needs the extension ssaia"):
        it.machine.start()


def test_corrupt_compressed_kernel_is_one_sentence_and_leaves_nothing(run, image, tmp_path):
    whole = Path(image).read_bytes() + os.urandom(1 << 18)
    packed = gzip.compress(whole)
    (tmp_path / "bad.gz").write_bytes(packed[:100_000] + bytes(1000) + packed[101_000:])
    it = run(kernel_file=str(tmp_path / "bad.gz"), log=str(tmp_path / "log"))
    with it.machine, pytest.raises(ConfigError, match=r"^The kernel .*bad\.gz "):
        it.machine.start()
    assert it.kernel.open_fds == []
    assert not (tmp_path / "log").exists()
