# SPDX-License-Identifier: Apache-2.0
"""A vCPU's registers as text, for people."""

from __future__ import annotations

from pyvmm.kvm import regs, uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.kvm.vcpu import Vcpu

_CSRS = ("sstatus", "stvec", "sepc", "scause", "stval", "sscratch", "satp", "sie", "sip")
_COLUMNS = 4


def registers(vcpu: Vcpu) -> str:
    """pc, the integer registers and the trap CSRs, in hex. On the vCPU's thread only."""
    values = [(name, vcpu.get_reg(regs.core(name))) for name in uapi.CORE_REGISTERS]
    values += [(name, vcpu.get_reg(regs.csr(name))) for name in _CSRS]
    cells = [f"{name:>9} {value:016x}" for name, value in values]
    rows = ["".join(cells[at : at + _COLUMNS]) for at in range(0, len(cells), _COLUMNS)]
    return "\n".join((f"CPU {vcpu.id}:", *rows))
