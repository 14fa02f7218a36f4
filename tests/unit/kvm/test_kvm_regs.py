# SPDX-License-Identifier: Apache-2.0
import errno

import pytest

from pyvmm.errors import KvmError
from pyvmm.kvm import regs, uapi


@pytest.mark.parametrize(
    ("register", "number", "name"),
    [
        (regs.config("isa"), 0x8030_0000_0100_0000, "config.isa"),
        (regs.config("satp_mode"), 0x8030_0000_0100_0006, "config.satp_mode"),
        (regs.core("pc"), 0x8030_0000_0200_0000, "core.pc"),
        (regs.core("a0"), 0x8030_0000_0200_000A, "core.a0"),
        (regs.core("t6"), 0x8030_0000_0200_001F, "core.t6"),
        (regs.core("mode"), 0x8030_0000_0200_0020, "core.mode"),
        (regs.csr("scounteren"), 0x8030_0000_0300_0009, "csr.scounteren"),
        (regs.csr("iprio1"), 0x8030_0000_0301_0001, "csr.iprio1"),
        (regs.csr("sstateen0"), 0x8030_0000_0302_0000, "csr.sstateen0"),
        (regs.timer("frequency"), 0x8030_0000_0400_0000, "timer.frequency"),
        (regs.fp_f(32), 0x8020_0000_0500_0020, "fp_f.fcsr"),
        (regs.fp_d(31), 0x8030_0000_0600_001F, "fp_d.f31"),
        (regs.fp_d(32), 0x8020_0000_0600_0020, "fp_d.fcsr"),
        (regs.isa_extension("zbb"), 0x8030_0000_0700_000D, "isa.zbb"),
        (regs.sbi_extension("dbcn"), 0x8030_0000_0800_0009, "sbi.dbcn"),
        (regs.vector_csr("vlenb"), 0x8030_0000_0900_0004, "vector.vlenb"),
        (regs.vector(0, 16), 0x8040_0000_0900_0006, "vector.v0"),
        (regs.vector(31, 32), 0x8050_0000_0900_0025, "vector.v31"),
        (0x8030_0000_0A00_0001, 0x8030_0000_0A00_0001, "sta.shmem_hi"),
        (0x8030_0000_0A01_0003, 0x8030_0000_0A01_0003, "fwft.pointer_masking.enable"),
        (0x8030_0000_0701_0001, 0x8030_0000_0701_0001, "isa_enable.1"),
        (0x8030_0000_0700_FFFF, 0x8030_0000_0700_FFFF, "0x803000000700ffff"),
        (0x8030_0000_0F00_0000, 0x8030_0000_0F00_0000, "0x803000000f000000"),
    ],
)
def test_register_has_the_kernels_number_and_a_name(register, number, name):
    assert (hex(register), regs.name(register)) == (hex(number), name)


@pytest.mark.parametrize("lookup", [regs.config, regs.core, regs.csr, regs.timer, regs.isa_extension])
def test_register_that_kvm_does_not_have_is_a_value_error(lookup):
    with pytest.raises(ValueError, match=r"nonsense|not in tuple"):
        lookup("nonsense")


def test_extensions_that_can_be_turned_off_are_known_ones():
    assert set(regs.ISA_CAN_BE_TURNED_OFF) < set(regs.ISA_EXTENSIONS)


def test_isa_extensions_are_those_that_are_on(machine):
    with machine(isa=("a", "i", "zicsr", "zaamo")).create_vcpu(0) as vcpu:
        extensions = regs.isa_extensions(vcpu)
    assert [name for name, on in extensions.items() if on] == ["a", "i", "zicsr", "zaamo"]
    assert tuple(extensions) == uapi.ISA_EXTENSIONS


def test_isa_extensions_cost_one_ioctl_for_64(machine):
    vm = machine()
    with vm.create_vcpu(0) as vcpu:
        before = len(vm.kernel.calls)
        regs.isa_extensions(vcpu)
    assert len(vm.kernel.calls) - before == 2


class OldKernel:
    """A vCPU of a kernel that knows 62 extensions: one word of them."""

    def __init__(self, error):
        self.error = error

    def get_reg(self, register):
        if register & 0xFFFF:
            raise KvmError("KVM_GET_ONE_REG", self.error)
        return 1 << 5


def test_isa_extensions_of_a_kernel_with_fewer_words_are_off():
    extensions = regs.isa_extensions(OldKernel(errno.ENOENT))
    assert [name for name, on in extensions.items() if on] == ["i"]


def test_isa_extensions_pass_other_errors_on():
    with pytest.raises(KvmError):
        regs.isa_extensions(OldKernel(errno.EIO))


def test_sbi_extensions_show_that_dbcn_is_off_until_it_is_turned_on(machine):
    with machine().create_vcpu(0) as vcpu:
        assert not regs.sbi_extensions(vcpu)["dbcn"]
        vcpu.set_reg(regs.sbi_extension("dbcn"), 1)
        assert regs.sbi_extensions(vcpu)["dbcn"]
