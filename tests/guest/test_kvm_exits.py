# SPDX-License-Identifier: Apache-2.0
"""Every way in which a hand-made guest leaves real KVM, and how the answers reach it."""

import errno
import queue

import pytest
from handmade import DEVICE, RAM

from pyvmm.errors import KvmError
from pyvmm.kvm import regs, uapi

pytestmark = pytest.mark.kvm

VALUE = 0x8F9E_ADBC_CBDA_E9F8  # the top bit of every width is set
SBI_SUCCESS, SBI_ERR_DENIED = 0, -4


@pytest.mark.parametrize(("instruction", "length"), [("sb", 1), ("sh", 2), ("sw", 4), ("sd", 8)])
def test_store_shows_address_length_and_value(guest, instruction, length):
    guest.code.li("a1", VALUE)
    getattr(guest.code, instruction)("a1", 16, "t0")
    guest.start()
    assert guest.run_to_store() == (16, length, VALUE & ((1 << 8 * length) - 1))


@pytest.mark.parametrize(("instruction", "length"), [("c_sw", 4), ("c_sd", 8)])
def test_compressed_store_shows_the_same_and_advances_by_two(guest, instruction, length):
    guest.code.li("s0", DEVICE)
    guest.code.li("a1", VALUE)
    at = guest.code.here
    getattr(guest.code, instruction)("a1", 8, "s0")
    guest.start()
    assert guest.run_to_store() == (8, length, VALUE & ((1 << 8 * length) - 1))
    guest.cpu.complete_exit()
    assert guest.reg("pc") == at + 2


@pytest.fixture
def signs_extended(make_guest):
    """Whether this kernel extends the sign of what a signed load gets (kernels before 7.1 do not)."""
    guest = make_guest()
    guest.code.lb("a1", 0, "t0")
    guest.start()
    guest.cpu.run()
    guest.cpu.answer_mmio(1, 0x80)
    guest.cpu.complete_exit()
    return guest.reg("a1") != 0x80


@pytest.mark.parametrize(
    ("instruction", "length", "signed"),
    [
        ("lb", 1, True),
        ("lbu", 1, False),
        ("lh", 2, True),
        ("lhu", 2, False),
        ("lw", 4, True),
        ("lwu", 4, False),
        ("ld", 8, False),
        ("c_lw", 4, True),
        ("c_ld", 8, False),
    ],
)
def test_load_gets_the_answer_with_its_sign(guest, signs_extended, instruction, length, signed):
    guest.code.li("s0", DEVICE)
    guest.code.li("a1", 0x5555_5555_5555_5555)
    at = guest.code.here
    getattr(guest.code, instruction)("a1", 8, "s0")
    guest.start()
    assert guest.cpu.run() == uapi.KVM_EXIT_MMIO
    assert guest.cpu.mmio() == (DEVICE + 8, length, False, 0)
    guest.cpu.answer_mmio(length, VALUE)
    guest.cpu.complete_exit()
    low = VALUE & ((1 << 8 * length) - 1)
    extended = low - (1 << 8 * length) + (1 << 64)
    assert guest.reg("a1") == (extended if signed and signs_extended else low)
    assert guest.reg("pc") == at + (2 if instruction.startswith("c_") else 4)


def test_load_without_an_answer_in_between_still_advances_once(guest):
    guest.code.lw("a1", 0, "t0")
    at = guest.code.here
    guest.code.sw("a1", 4, "t0")
    guest.start()
    guest.cpu.run()
    guest.cpu.complete_exit()
    guest.cpu.complete_exit()
    assert guest.reg("pc") == at
    assert guest.run_to_store()[:2] == (4, 4)


def test_sbi_call_to_a_vendor_extension_is_forwarded_and_answered(guest):
    guest.code.sbi(0x0900_0001, 7, 11, 12, 13, 14, 15, 16)
    guest.code.sd("a0", 0, "t0")
    guest.code.sd("a1", 8, "t0")
    guest.start()
    assert guest.cpu.run() == uapi.KVM_EXIT_RISCV_SBI
    assert guest.cpu.sbi() == (0x0900_0001, 7, (11, 12, 13, 14, 15, 16))
    guest.cpu.answer_sbi(SBI_ERR_DENIED, 99)
    assert guest.run_to_store() == (0, 8, SBI_ERR_DENIED % 2**64)
    assert guest.run_to_store() == (8, 8, 99)


def test_sbi_call_without_an_answer_is_not_supported(guest):
    guest.code.sbi(0x0900_0001, 0)
    guest.code.sd("a0", 0, "t0")
    guest.start()
    guest.cpu.run()
    assert guest.run_to_store() == (0, 8, 2**64 - 2)


def test_debug_console_is_forwarded_once_it_is_turned_on(guest):
    guest.cpu.set_reg(regs.sbi_extension("dbcn"), 1)
    guest.code.sbi(0x4442_434E, 2, ord("A"))
    guest.start()
    assert guest.cpu.run() == uapi.KVM_EXIT_RISCV_SBI
    assert guest.cpu.sbi()[:2] == (0x4442_434E, 2)


@pytest.mark.parametrize(
    ("kind", "event"), [(0, uapi.KVM_SYSTEM_EVENT_SHUTDOWN), (1, uapi.KVM_SYSTEM_EVENT_RESET)]
)
def test_system_reset_call_is_a_system_event_with_its_reason(guest, kind, event):
    guest.code.sbi(0x5352_5354, 0, kind, 1)
    guest.start()
    assert guest.cpu.run() == uapi.KVM_EXIT_SYSTEM_EVENT
    assert guest.cpu.system_event() == (event, (1,))


def test_ebreak_with_guest_debug_leaves_at_the_ebreak(guest):
    at = guest.code.here
    guest.code.ebreak()
    guest.start()
    guest.cpu.set_guest_debug(True)
    assert guest.cpu.run() == uapi.KVM_EXIT_DEBUG
    assert guest.reg("pc") == at


def test_ebreak_without_guest_debug_is_the_guests_own_trap(guest):
    guest.code.label("begin")
    guest.code.li("t1", RAM + 0x1000)
    guest.code.csrw("stvec", "t1")
    guest.code.ebreak()
    guest.start()
    handler = type(guest.code)(RAM + 0x1000)
    handler.csrr("a1", "scause")
    handler.sd("a1", 0, "t0")
    guest.memory.write(RAM + 0x1000, handler.assemble())
    assert guest.run_to_store() == (0, 8, 3)


def fetches_from_nowhere(guest):
    guest.code.li("t1", RAM + 0x1000)
    guest.code.csrw("stvec", "t1")
    guest.code.li("t1", 0x4000_0000)
    guest.code.jalr("ra", "t1")
    guest.start()
    handler = type(guest.code)(RAM + 0x1000)
    handler.csrr("a1", "scause")
    handler.sd("a1", 0, "t0")
    guest.memory.write(RAM + 0x1000, handler.assemble())
    try:
        return guest.run_to_store()
    except KvmError as error:
        return error.errno


def test_jump_to_nowhere_is_the_guests_trap_or_an_error_but_never_a_hang(guest):
    instruction_access_fault = (0, 8, 1)
    assert fetches_from_nowhere(guest) in (instruction_access_fault, errno.EOPNOTSUPP)


def test_atomic_on_a_device_is_an_error_that_leaves_the_pc(guest):
    at = guest.code.here
    guest.code.amoadd_w("a1", "a2", "t0")
    guest.start()
    with pytest.raises(KvmError, match="cannot emulate") as caught:
        guest.cpu.run()
    assert (caught.value.errno, guest.reg("pc")) == (errno.EOPNOTSUPP, at)


def test_misaligned_device_access_is_an_error(guest):
    guest.code.lw("a1", 1, "t0")
    guest.start()
    with pytest.raises(KvmError, match="misaligned") as caught:
        guest.cpu.run()
    assert caught.value.errno == errno.EIO


def test_seed_csr_is_forwarded_and_answered(guest):
    if not regs.isa_extensions(guest.cpu)["zkr"]:
        pytest.skip("this host has no Zkr")
    guest.code.csrrw("a1", "seed", "zero")
    guest.code.sd("a1", 0, "t0")
    guest.start()
    assert guest.cpu.run() == uapi.KVM_EXIT_RISCV_CSR
    assert guest.cpu.csr() == (0x015, 0, 2**64 - 1)
    guest.cpu.answer_csr(0x8000_1234)
    assert guest.run_to_store() == (0, 8, 0x8000_1234)


def test_immediate_exit_keeps_the_guest_from_running(guest):
    guest.code.sw("a0", 0, "t0")
    guest.start()
    guest.cpu.immediate_exit = True
    assert guest.cpu.run() == uapi.KVM_EXIT_INTR
    assert guest.reg("pc") == RAM
    guest.cpu.immediate_exit = False
    assert guest.run_to_store()[0] == 0


@pytest.mark.parametrize("idle", ["wfi", "spin"])
def test_kick_brings_a_vcpu_out(guest, idle):
    guest.code.sw("a0", 0, "t0")
    guest.code.label("idle")
    if idle == "wfi":
        guest.code.wfi()
    guest.code.j("idle")
    guest.start()
    begun = queue.Queue()

    def work(vcpu):
        begun.put(vcpu.run())
        return vcpu.run()

    thread = guest.in_thread(guest.cpu, work)
    assert begun.get(timeout=30) == uapi.KVM_EXIT_MMIO
    thread.kick()
    assert thread.result() == uapi.KVM_EXIT_INTR


def test_second_vcpu_waits_for_hsm_and_starts_with_its_id_and_argument(make_guest):
    guest = make_guest(cpus=2)
    guest.code.sbi(0x48_534D, 0, 1, RAM + 0x1000, 0x1234)
    guest.code.sd("a0", 0, "t0")
    guest.start()
    secondary = type(guest.code)(RAM + 0x1000)
    secondary.li("t0", DEVICE)
    secondary.sd("a0", 8, "t0")
    secondary.sd("a1", 16, "t0")
    guest.memory.write(RAM + 0x1000, secondary.assemble())
    second = guest.vcpus[1]
    assert second.mp_state == uapi.KVM_MP_STATE_STOPPED

    def work(vcpu):
        return [(vcpu.run(), vcpu.mmio()) for _ in range(2)]

    thread = guest.in_thread(second, work)
    assert guest.run_to_store() == (0, 8, SBI_SUCCESS)
    assert thread.result() == [
        (uapi.KVM_EXIT_MMIO, (DEVICE + 8, 8, True, 1)),
        (uapi.KVM_EXIT_MMIO, (DEVICE + 16, 8, True, 0x1234)),
    ]
    assert second.mp_state == uapi.KVM_MP_STATE_RUNNABLE


def test_stopped_vcpu_comes_out_when_kicked(make_guest):
    guest = make_guest(cpus=2)
    thread = guest.in_thread(guest.vcpus[1], lambda vcpu: vcpu.run())
    thread.kick()
    assert thread.result() == uapi.KVM_EXIT_INTR
