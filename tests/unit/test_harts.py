# SPDX-License-Identifier: Apache-2.0
import errno

import pytest
from fakes.kernel import FakeKernel, FakeVcpu, fail

from pyvmm import harts
from pyvmm.config import MachineConfig
from pyvmm.errors import ConfigError, KvmError
from pyvmm.kvm import regs, uapi
from pyvmm.kvm.system import Kvm


class Host:
    """A virtual machine on a fake KVM, and the harts that it is given."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.kvm = Kvm(kernel=kernel)
        self.vm = self.kvm.create_vm()
        self.vcpus = []
        self.notes = []

    def create(self, **config):
        self.vcpus, cpu = harts.create(self.vm, MachineConfig(**config), self.notes.append)
        return cpu

    def values(self, register):
        """What every hart has in ``register``."""
        return [vcpu.registers[register] for vcpu in self.kernel.vm.vcpus.values()]

    def close(self):
        for thing in (*self.vcpus, self.vm, self.kvm):
            thing.close()
        assert self.kernel.open_fds == []


@pytest.fixture
def host():
    made = []

    def make(**options):
        made.append(Host(FakeKernel(**options)))
        return made[-1]

    yield make
    for it in made:
        it.close()


def test_every_hart_has_debug_console_suspend_and_readable_counters(host):
    it = host()
    it.create(cpus=3)
    assert [vcpu.id for vcpu in it.vcpus] == [0, 1, 2]
    assert it.values(regs.sbi_extension("dbcn")) == [1, 1, 1]
    assert it.values(regs.sbi_extension("susp")) == [1, 1, 1]
    assert it.values(regs.csr("scounteren")) == [7, 7, 7]


def test_machine_without_a_console_has_no_debug_console(host):
    it = host()
    it.create(cpus=2, console="none")
    assert it.values(regs.sbi_extension("dbcn")) == [0, 0]
    assert it.values(regs.sbi_extension("susp")) == [1, 1]


@pytest.mark.parametrize(("name", "register"), [("legacy", "v01"), ("DBCN", "dbcn"), ("sta", "sta")])
def test_disabled_sbi_extension_is_off_on_every_hart(host, name, register):
    it = host()
    it.create(cpus=2, disable_sbi=[name])
    assert it.values(regs.sbi_extension(register)) == [0, 0]


def test_kernel_without_an_sbi_extension_gives_a_machine_without_it(host, monkeypatch):
    monkeypatch.setattr("fakes.kernel.SBI_OFF", ("dbcn", "mpxy"))
    it = host()
    it.create()
    assert it.values(regs.sbi_extension("dbcn")) == [1]


def test_kernel_that_refuses_an_sbi_extension_is_an_error_and_leaves_no_hart(host, monkeypatch):
    real = FakeVcpu.set_one_reg

    def refuse(vcpu, argument):
        register = int.from_bytes(bytes(argument)[:8], "little")
        return fail(errno.EBUSY) if register == regs.sbi_extension("susp") else real(vcpu, argument)

    monkeypatch.setattr(FakeVcpu, "set_one_reg", refuse)
    it = host()
    with pytest.raises(KvmError, match=r"sbi\.susp"):
        it.create(cpus=2)
    assert len(it.kernel.open_fds) == 2  # /dev/kvm and the machine


def test_isa_extension_is_taken_from_every_hart(host):
    it = host()
    cpu = it.create(cpus=2, disable_isa=["zicbom"])
    assert it.values(regs.isa_extension("zicbom")) == [0, 0]
    assert "zicbom" not in cpu.extensions
    assert it.notes == []


def test_isa_extension_that_kvm_cannot_take_away_is_remarked_on(host):
    it = host()
    cpu = it.create(disable_isa=["zbb"])
    assert "zbb" not in cpu.extensions
    assert it.notes == ["KVM cannot turn zbb off on this host, so it is only left out of the device tree."]


def test_isa_extension_that_the_host_does_not_have_is_one_sentence(host):
    with pytest.raises(ConfigError, match="KVM refuses to enable zvbb on this host; leave"):
        host().create(isa="host,+zvbb")


def test_hart_is_described_with_what_kvm_says(host):
    it = host()
    cpu = it.create()
    assert (cpu.timebase, cpu.mmu) == (10_000_000, "sv57")
    assert (cpu.cbom, cpu.cboz, cpu.cbop) == (64, 64, 0)
    assert "ssaia" in cpu.extensions


@pytest.mark.parametrize(("mode", "mmu"), [(8, "sv39"), (9, "sv48"), (10, "sv57"), (0, "sv39")])
def test_mmu_is_the_widest_that_kvm_has(host, monkeypatch, mode, mmu):
    real = FakeVcpu.__init__

    def init(vcpu, *args):
        real(vcpu, *args)
        vcpu.registers[regs.config("satp_mode")] = mode

    monkeypatch.setattr(FakeVcpu, "__init__", init)
    assert host().create().mmu == mmu


def test_config_register_that_an_old_kernel_lacks_counts_as_zero(host, monkeypatch):
    real = FakeVcpu.__init__

    def init(vcpu, *args):
        real(vcpu, *args)
        for name in ("satp_mode", "zicboz_block_size"):
            del vcpu.registers[regs.config(name)]

    monkeypatch.setattr(FakeVcpu, "__init__", init)
    cpu = host().create()
    assert (cpu.mmu, cpu.cbom, cpu.cboz) == ("sv39", 64, 0)


@pytest.mark.parametrize("limits", [(4, 1024), (0, 4)])
def test_limit_of_harts_is_the_hosts(host, limits):
    most, usual = limits
    it = host(capabilities={uapi.KVM_CAP_MAX_VCPUS: most, uapi.KVM_CAP_NR_VCPUS: usual})
    with pytest.raises(ConfigError, match="at most 4 CPUs, not 5"):
        it.create(cpus=5)
    assert it.kernel.vm.vcpus == {}


def test_unknown_sbi_extension_is_found_without_a_host():
    with pytest.raises(ConfigError, match=r"'susq'\. Did you mean susp\?"):
        harts.select(MachineConfig(disable_sbi=["susq"]))
