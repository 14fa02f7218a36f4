# SPDX-License-Identifier: Apache-2.0
"""A vCPU's registers as text, for people."""

from __future__ import annotations

from pyvmm.errors import KvmError
from pyvmm.kvm import regs, uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.kvm.vcpu import Vcpu

_CSRS = ("sstatus", "stvec", "sepc", "scause", "stval", "sscratch", "satp", "sie", "sip")
_COLUMNS = 4


def position(vcpu: Vcpu) -> str:
    """Where the vCPU is: ``pc 0x... on CPU N``. On the vCPU's thread only."""
    return f"pc {_value(vcpu, regs.core('pc')) or 'unknown'} on CPU {vcpu.id}"


def registers(vcpu: Vcpu) -> str:
    """pc, the integer registers and the trap CSRs, in hex, as far as KVM still tells.

    On the vCPU's thread only.
    """
    names = [(name, regs.core(name)) for name in uapi.CORE_REGISTERS]
    names += [(name, regs.csr(name)) for name in _CSRS]
    cells = [f"{name:>9} {_value(vcpu, register) or 'unknown':>18}" for name, register in names]
    rows = ["".join(cells[at : at + _COLUMNS]) for at in range(0, len(cells), _COLUMNS)]
    return "\n".join((f"CPU {vcpu.id}:", *rows))


def values(vcpu: Vcpu) -> dict[str, int]:
    """The same as numbers, by name."""
    names = {name: regs.core(name) for name in uapi.CORE_REGISTERS}
    names |= {name: regs.csr(name) for name in _CSRS}
    return {name: vcpu.get_reg(register) for name, register in names.items()}


def _value(vcpu: Vcpu, register: int) -> str:
    try:
        return f"0x{vcpu.get_reg(register):x}"
    except KvmError:
        return ""
