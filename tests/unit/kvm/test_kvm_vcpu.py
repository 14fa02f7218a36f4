# SPDX-License-Identifier: Apache-2.0
import errno
import signal
import threading

import pytest
from fakes import kernel as fake

from pyvmm.errors import HostError, KvmError
from pyvmm.kvm import regs, uapi
from pyvmm.kvm.vcpu import Vcpu


@pytest.fixture
def vcpu(machine):
    """A function that makes the first vCPU with a script."""
    opened = []

    def make(*script, **options):
        opened.append(machine(script=script, **options).create_vcpu(0))
        return opened[-1]

    yield make
    for thing in opened:
        thing.close()


def behind(vcpu):
    return vcpu.kernel.vm.vcpus[vcpu.id]


@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_mmio_store_is_cut_to_its_length(vcpu, length):
    cpu = vcpu(fake.mmio_write(0x1000_0000, length, 0x8899_AABB_CCDD_EEFF))
    assert cpu.run() == uapi.KVM_EXIT_MMIO
    value = 0x8899_AABB_CCDD_EEFF & ((1 << 8 * length) - 1)
    assert cpu.mmio() == (0x1000_0000, length, True, value)


def test_mmio_load_shows_no_value(vcpu):
    cpu = vcpu(fake.mmio_read(0x1000_0005, 1))
    cpu.run()
    assert cpu.mmio() == (0x1000_0005, 1, False, 0)


def test_mmio_answer_reaches_the_guest_at_the_next_run_cut_to_its_length(vcpu):
    cpu = vcpu(fake.mmio_read(0x1000_0005, 2))
    cpu.run()
    cpu.answer_mmio(2, 0x1_2345_6789)
    assert behind(cpu).answers == []
    cpu.run()
    assert behind(cpu).answers == [0x6789]


def test_mmio_answer_that_is_negative_is_its_low_bytes(vcpu):
    cpu = vcpu(fake.mmio_read(0, 8))
    cpu.run()
    cpu.answer_mmio(8, -1)
    cpu.run()
    assert behind(cpu).answers == [2**64 - 1]


@pytest.mark.parametrize("address", [0x1000_0005, 0x12_1000_0005])
def test_load_of_a_known_byte_is_answered(vcpu, address):
    cpu = vcpu(fake.mmio_read(address, 1))
    cpu.run()
    assert cpu.answer_known({address: 0x60})
    cpu.run()
    assert behind(cpu).answers == [0x60]


@pytest.mark.parametrize(
    "access",
    [
        fake.mmio_read(0x1000_0004, 1),
        fake.mmio_read(0x12_1000_0005, 1),
        fake.mmio_read(0x1000_0005, 2),
        fake.mmio_read(0x1000_0005, 4),
        fake.mmio_write(0x1000_0005, 1, 0),
    ],
)
def test_any_other_access_is_left_to_the_device(vcpu, access):
    cpu = vcpu(access)
    cpu.run()
    before = cpu.mmio()
    assert not cpu.answer_known({0x1000_0005: 0x60})
    assert cpu.mmio() == before


def test_sbi_call_shows_registers_and_takes_a_signed_answer(vcpu):
    cpu = vcpu(fake.sbi(0x4442434E, 2, 0x41, 7))
    assert cpu.run() == uapi.KVM_EXIT_RISCV_SBI
    assert cpu.sbi() == (0x4442434E, 2, (0x41, 7, 0, 0, 0, 0))
    cpu.answer_sbi(-3, 2**64 - 1)
    cpu.run()
    assert behind(cpu).answers == [(-3, -1)]


def test_sbi_call_without_an_answer_is_not_supported(vcpu):
    cpu = vcpu(fake.sbi(0x0900_0000, 0))
    cpu.run()
    cpu.run()
    assert behind(cpu).answers == [(-2, 0)]


def test_csr_access_shows_the_write_and_takes_the_old_value(vcpu):
    cpu = vcpu(fake.csr(0x015, 0, 2**64 - 1))
    assert cpu.run() == uapi.KVM_EXIT_RISCV_CSR
    assert cpu.csr() == (0x015, 0, 2**64 - 1)
    cpu.answer_csr(0x8000_1234)
    cpu.run()
    assert behind(cpu).answers == [0x8000_1234]


def test_system_event_shows_as_many_words_as_the_kernel_says(vcpu):
    cpu = vcpu(fake.system_event(uapi.KVM_SYSTEM_EVENT_RESET, 1))
    assert cpu.run() == uapi.KVM_EXIT_SYSTEM_EVENT
    assert cpu.system_event() == (uapi.KVM_SYSTEM_EVENT_RESET, (1,))


def test_fail_entry_shows_reason_and_host_cpu(vcpu):
    cpu = vcpu(fake.fail_entry(1, 3))
    assert cpu.run() == uapi.KVM_EXIT_FAIL_ENTRY
    assert cpu.fail_entry() == (1, 3)


@pytest.mark.parametrize("error", [errno.EINTR, errno.EAGAIN])
def test_run_interrupted_is_an_exit_and_not_an_error(vcpu, error):
    cpu = vcpu(fake.mmio_write(0, 4, 1), fake.failure(error))
    cpu.run()
    assert cpu.run() == uapi.KVM_EXIT_INTR


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (errno.EOPNOTSUPP, "cannot emulate"),
        (errno.EIO, "misaligned"),
        (errno.EFAULT, "guest memory"),
        (errno.ENXIO, "KVM_RUN failed"),
    ],
)
def test_run_that_fails_says_what_the_guest_did(vcpu, error, hint):
    cpu = vcpu(fake.failure(error))
    with pytest.raises(KvmError, match=hint) as caught:
        cpu.run()
    assert caught.value.errno == error


def test_complete_exit_steps_over_the_instruction_once_and_enters_no_guest(vcpu):
    cpu = vcpu(fake.mmio_read(0, 4))
    cpu.set_reg(regs.core("pc"), 0x8000_0000)
    cpu.run()
    cpu.answer_mmio(4, 5)
    cpu.complete_exit()
    assert (cpu.get_reg(regs.core("pc")), behind(cpu).answers) == (0x8000_0004, [5])
    cpu.complete_exit()
    assert (cpu.get_reg(regs.core("pc")), cpu.immediate_exit) == (0x8000_0004, False)


def test_kick_ends_a_waiting_run(vcpu):
    cpu = vcpu(fake.wait_for_kick())
    reasons = []
    thread = threading.Thread(target=lambda: reasons.append(cpu.run()))
    thread.start()
    cpu.immediate_exit = True
    thread.join(10)
    assert reasons == [uapi.KVM_EXIT_INTR]
    assert cpu.immediate_exit


def test_signal_that_only_the_guest_lets_through_ends_the_run_and_stays_pending(vcpu):
    cpu = vcpu(fake.wait_for_kick())
    kick = signal.SIGUSR1
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [kick])
    try:
        cpu.set_signal_mask(signal.valid_signals() - {kick})
        signal.pthread_kill(threading.get_ident(), kick)
        assert cpu.run() == uapi.KVM_EXIT_INTR
        assert signal.sigtimedwait([kick], 0).si_signo == kick
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_get_reg_of_one_that_is_not_there_names_it(vcpu):
    cpu = vcpu(isa=("i",))
    with pytest.raises(KvmError, match=r"KVM_GET_ONE_REG failed: .*register isa.zbb: .*no such register"):
        cpu.get_reg(regs.isa_extension("zbb"))


def test_set_reg_of_another_size_names_it(vcpu):
    with pytest.raises(KvmError, match=r"register core\.pc"):
        vcpu().set_reg(regs.register_id(uapi.KVM_REG_RISCV_CORE, 0, size=regs.U32), 0)


def test_set_reg_cuts_to_the_registers_size(vcpu):
    cpu = vcpu()
    cpu.set_reg(regs.core("a0"), -1)
    cpu.set_reg(regs.fp_d(32), 0x1_0000_0003)
    assert (cpu.get_reg(regs.core("a0")), cpu.get_reg(regs.fp_d(32))) == (2**64 - 1, 3)


def test_set_reg_too_late_says_so(vcpu):
    cpu = vcpu(fake.interrupted())
    cpu.run()
    with pytest.raises(KvmError, match="has run already"):
        cpu.set_reg(regs.isa_extension("svpbmt"), 0)


def test_reg_list_is_every_register(vcpu):
    cpu = vcpu()
    assert cpu.reg_list() == list(behind(cpu).registers)


def test_mp_state_of_the_first_is_runnable_and_of_later_ones_stopped(machine):
    vm = machine()
    with vm.create_vcpu(0) as first, vm.create_vcpu(1) as second:
        assert (first.mp_state, second.mp_state) == (uapi.KVM_MP_STATE_RUNNABLE, uapi.KVM_MP_STATE_STOPPED)
        second.mp_state = uapi.KVM_MP_STATE_RUNNABLE
        assert second.mp_state == uapi.KVM_MP_STATE_RUNNABLE


def test_interrupt_sets_and_clears(vcpu):
    cpu = vcpu()
    cpu.interrupt(True)
    cpu.interrupt(False)
    assert behind(cpu).interrupts == [True, False]


def test_guest_debug_turns_on_and_off(vcpu):
    cpu = vcpu()
    cpu.set_guest_debug(True)
    assert behind(cpu).guest_debug
    cpu.set_guest_debug(False)
    assert not behind(cpu).guest_debug


def test_close_twice_is_harmless_and_unmaps_the_page(vcpu):
    cpu = vcpu()
    page = behind(cpu).page
    cpu.close()
    cpu.close()
    assert page.closed


def test_page_that_cannot_be_mapped_closes_the_vcpu():
    class NoMapping(fake.FakeKernel):
        def mmap(self, fd, size):
            raise OSError(errno.ENOMEM, "no room")

    kernel = NoMapping()
    fd = kernel.add(fake.FakeVcpu(fake.FakeVm(kernel), 0, ()))
    with pytest.raises(HostError, match="cannot map the run page of vCPU 0: no room"):
        Vcpu(kernel, fd, 0, 8192)
    assert kernel.open_fds == []
