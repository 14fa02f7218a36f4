# SPDX-License-Identifier: Apache-2.0
"""The harts of a machine: vCPUs with the ISA and SBI extensions that were asked for.

All of it must be set before a vCPU first runs. Every hart is alike.
"""

from __future__ import annotations

from errno import ENOENT

from pyvmm import devicetree, isa
from pyvmm.errors import ConfigError, KvmError
from pyvmm.kvm import regs, uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.config import MachineConfig
    from pyvmm.kvm.vcpu import Vcpu
    from pyvmm.kvm.vm import Vm

#: Off in a fresh vCPU, and what pyvmm implements: debug console and system suspend.
_SBI_ON = ("dbcn", "susp")
# lkvm calls the legacy extensions by that name.
_SBI_ALIASES = {"legacy": "v01"}
_MMU_BY_SATP_MODE = {8: "sv39", 9: "sv48", 10: "sv57"}
#: User space of the guest may read cycle, time and instret. Kernels from 6.16 on start with 0, and guests
#: that never set it would take an illegal instruction at their first clock_gettime.
_SCOUNTEREN = 0x7


def select(config: MachineConfig) -> isa.Selection:
    """The ISA extensions that ``config`` asks for.

    Raises ConfigError for names, of SBI extensions too, that KVM does not know.
    """
    for name in config.disable_sbi:
        _known_sbi(name)
    return isa.select(config.isa, config.cpu_type, config.disable_isa, regs.ISA_EXTENSIONS)


def create(vm: Vm, config: MachineConfig, note: Callable[[str], None]) -> tuple[list[Vcpu], devicetree.Cpu]:
    """The vCPUs that ``config`` asks for, and their description for the device tree.

    Raises ConfigError for what this host cannot give, and KvmError. The caller closes the vCPUs.
    """
    limit = vm.check_extension(uapi.KVM_CAP_MAX_VCPUS) or vm.check_extension(uapi.KVM_CAP_NR_VCPUS)
    if config.cpus > limit:
        raise ConfigError(f"This host's KVM gives a guest at most {limit} CPUs, not {config.cpus}.")
    vcpus: list[Vcpu] = []
    try:
        for number in range(config.cpus):
            vcpus.append(vm.create_vcpu(number))  # noqa: PERF401  # each is known when the next is refused
        extensions = _configure(vcpus, config, note)
        return vcpus, _describe(vcpus[0], extensions)
    except BaseException:
        for vcpu in vcpus:
            vcpu.close()
        raise


def _configure(vcpus: list[Vcpu], config: MachineConfig, note: Callable[[str], None]) -> list[str]:
    plan = select(config).apply(regs.isa_extensions(vcpus[0]))
    for name, value in plan.writes:
        _switch_isa(vcpus, name, value, note)
    for name in _SBI_ON:
        _switch_sbi(vcpus, name, name != "dbcn" or config.console != "none")
    for name in config.disable_sbi:
        _switch_sbi(vcpus, _known_sbi(name), False)
    for vcpu in vcpus:
        vcpu.set_reg(regs.csr("scounteren"), _SCOUNTEREN)
    return plan.names


def _switch_isa(vcpus: list[Vcpu], name: str, value: bool, note: Callable[[str], None]) -> None:
    try:
        for vcpu in vcpus:
            vcpu.set_reg(regs.isa_extension(name), value)
    except KvmError:
        note(isa.Plan.refused(name, value))


def _switch_sbi(vcpus: list[Vcpu], name: str, value: bool) -> None:
    """Nothing happens where this kernel does not have the extension."""
    try:
        for vcpu in vcpus:
            vcpu.set_reg(regs.sbi_extension(name), value)
    except KvmError as error:
        if error.errno != ENOENT:
            raise


def _known_sbi(name: str) -> str:
    known = _SBI_ALIASES.get(name.lower(), name.lower())
    if known not in regs.SBI_EXTENSIONS:
        from pyvmm.nearest import nearest

        hint = nearest(name, (*regs.SBI_EXTENSIONS, *_SBI_ALIASES))
        hint = hint or f" It knows {', '.join(regs.SBI_EXTENSIONS)}."
        raise ConfigError(f"KVM knows no SBI extension {name!r}.{hint}")
    return known


def _describe(vcpu: Vcpu, extensions: list[str]) -> devicetree.Cpu:
    return devicetree.Cpu(
        extensions,
        vcpu.get_reg(regs.timer("frequency")),
        _MMU_BY_SATP_MODE.get(_config(vcpu, "satp_mode"), "sv39"),
        cbom=_config(vcpu, "zicbom_block_size"),
        cboz=_config(vcpu, "zicboz_block_size"),
        cbop=_config(vcpu, "zicbop_block_size"),
    )


def _config(vcpu: Vcpu, register: str) -> int:
    """A CONFIG register, or 0 where this kernel or this vCPU has none."""
    try:
        return vcpu.get_reg(regs.config(register))
    except KvmError as error:
        if error.errno != ENOENT:
            raise
        return 0
