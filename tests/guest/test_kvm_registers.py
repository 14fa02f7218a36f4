# SPDX-License-Identifier: Apache-2.0
"""One-reg access on real KVM."""

import errno

import pytest

from pyvmm.errors import KvmError
from pyvmm.kvm import regs, uapi

pytestmark = pytest.mark.kvm


def test_every_listed_register_has_a_name_and_takes_its_own_value_back(guest):
    listed = guest.cpu.reg_list()
    assert len(listed) > 100
    refused = []
    for register in listed:
        value = guest.cpu.get_reg(register)
        try:
            guest.cpu.set_reg(register, value)
        except KvmError as error:
            refused.append((regs.name(register), error.errno))
        assert guest.cpu.get_reg(register) == value or register == regs.timer("time")
    assert refused == [("timer.state", errno.EINVAL)]
    known = {name for name in map(regs.name, listed) if not name.startswith("0x")}
    assert {"core.pc", "csr.sstatus", "timer.compare", "isa.i", "sbi.dbcn", "config.isa"} <= known


def test_registers_without_a_name_are_only_those_newer_than_the_headers(guest):
    names = [regs.name(register) for register in guest.cpu.reg_list()]
    assert [name for name in names if name.startswith("0x")] == []


def test_integer_registers_keep_64_bits(guest):
    for number, name in enumerate(uapi.CORE_REGISTERS):
        guest.cpu.set_reg(regs.core(name), (number + 1) * 0x0101_0101_0101_0101)
    values = [guest.cpu.get_reg(regs.core(name)) for name in uapi.CORE_REGISTERS]
    assert values == [(number + 1) * 0x0101_0101_0101_0101 for number in range(32)]


def test_registers_of_a_fresh_vcpu_are_zero_in_supervisor_mode(guest):
    assert guest.reg("mode") == uapi.KVM_RISCV_MODE_S
    assert [guest.reg(name) for name in uapi.CORE_REGISTERS] == [0] * 32


def test_float_registers_are_written_and_read(guest):
    guest.cpu.set_reg(regs.fp_d(5), 0x4045_0000_0000_0000)
    guest.cpu.set_reg(regs.fp_d(32), 0x1F)
    assert guest.cpu.get_reg(regs.fp_d(5)) == 0x4045_0000_0000_0000
    assert guest.cpu.get_reg(regs.fp_d(32)) == 0x1F


def test_isa_extensions_agree_with_the_single_registers(guest):
    def single(name):
        try:
            return bool(guest.cpu.get_reg(regs.isa_extension(name)))
        except KvmError as error:
            assert error.errno == errno.ENOENT
            return False

    found = regs.isa_extensions(guest.cpu)
    assert found == {name: single(name) for name in uapi.ISA_EXTENSIONS}
    assert found["i"]
    assert not found["h"]


def test_isa_extension_that_may_be_turned_off_goes_and_comes_back(guest):
    for value in (0, 1):
        guest.cpu.set_reg(regs.isa_extension("d"), value)
        assert regs.isa_extensions(guest.cpu)["d"] is bool(value)


def test_isa_extension_that_must_stay_says_the_host_does_not_allow_it(guest):
    with pytest.raises(KvmError, match=r"isa\.i: the host does not allow"):
        guest.cpu.set_reg(regs.isa_extension("i"), 0)


def test_extensions_that_can_be_turned_off_are_those_this_kernel_lets_go(guest):
    host_dependent = {"ssaia", "svade"}
    let_go = set()
    for name, on in regs.isa_extensions(guest.cpu).items():
        if on:
            try:
                guest.cpu.set_reg(regs.isa_extension(name), 0)
                let_go.add(name)
            except KvmError as error:
                assert error.errno == errno.EINVAL
    assert let_go <= set(regs.ISA_CAN_BE_TURNED_OFF)
    assert {"d", "f"} <= let_go | host_dependent


def test_isa_is_frozen_once_the_vcpu_has_run(guest):
    guest.start()
    guest.cpu.complete_exit()
    with pytest.raises(KvmError, match="has run already"):
        guest.cpu.set_reg(regs.isa_extension("d"), 0)


def test_sbi_extensions_show_the_debug_console_off_until_it_is_turned_on(guest):
    before = regs.sbi_extensions(guest.cpu)
    assert (before["time"], before["hsm"], before["dbcn"]) == (True, True, False)
    guest.cpu.set_reg(regs.sbi_extension("dbcn"), 1)
    assert regs.sbi_extensions(guest.cpu)["dbcn"]


def test_register_that_is_not_there_is_named(guest):
    with pytest.raises(KvmError, match="register 0x8030000002000fff: this vCPU has no such register"):
        guest.cpu.get_reg(regs.register_id(uapi.KVM_REG_RISCV_CORE, 0xFFF))


def test_timebase_is_there_and_cannot_be_changed(guest):
    frequency = guest.cpu.get_reg(regs.timer("frequency"))
    assert frequency > 0
    with pytest.raises(KvmError, match=r"timer\.frequency"):
        guest.cpu.set_reg(regs.timer("frequency"), frequency + 1)


def test_mp_state_can_be_set(guest):
    guest.cpu.mp_state = uapi.KVM_MP_STATE_STOPPED
    assert guest.cpu.mp_state == uapi.KVM_MP_STATE_STOPPED
    with pytest.raises(KvmError, match="KVM_SET_MP_STATE"):
        guest.cpu.mp_state = 1
