# SPDX-License-Identifier: Apache-2.0
"""Ids and names of the registers behind KVM_GET_ONE_REG and KVM_SET_ONE_REG on RISC-V.

An id says the architecture (bits 63:60), the register's size (55:52, as a power of two), its class (31:24),
a subclass (23:16) and its index (15:0). ISA and SBI extensions are registers too: 1 is on, 0 is off. They,
and the machine ids, can be changed only before the vCPU first enters KVM_RUN.
"""

from __future__ import annotations

from errno import ENOENT

from pyvmm.errors import KvmError
from pyvmm.kvm import uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.kvm.vcpu import Vcpu

U32, U64 = 2, 3  # size codes: log2 of the bytes

ISA_EXTENSIONS = uapi.ISA_EXTENSIONS
SBI_EXTENSIONS = uapi.SBI_EXTENSIONS

#: Extensions that KVM lets a guest be without: KVM answers EINVAL for all others once the host has them,
#: because it has no means to trap their use. (ssaia and svade only on some hosts: smstateen, svadu.)
ISA_CAN_BE_TURNED_OFF = (
    "d", "f", "svpbmt", "zicbom", "zicboz", "ssaia", "v", "smstateen", "smnpm", "svade", "svadu", "zclsd",
    "zilsd",
)  # fmt: skip

#: VECTOR registers v0..v31 come after the vector CSRs and the (unused) data pointer.
_VECTOR_FIRST = len(uapi.VECTOR_REGISTERS)
_FWFT_MEMBERS = ("enable", "flags", "value")
_WORD_BITS = 64


def register_id(kind: int, index: int, subtype: int = 0, size: int = U64) -> int:
    """The id of register ``index`` in class ``kind`` (a KVM_REG_RISCV_ constant of ``uapi``)."""
    return uapi.KVM_REG_RISCV | size << uapi.KVM_REG_SIZE_SHIFT | kind | subtype | index


def config(register: str) -> int:
    """CONFIG: ``isa``, ``mvendorid``, ``zicbom_block_size``, ``satp_mode``..."""
    return register_id(uapi.KVM_REG_RISCV_CONFIG, uapi.CONFIG_REGISTERS.index(register))


def core(register: str) -> int:
    """CORE: ``pc``, the integer registers by ABI name, ``mode``."""
    return register_id(uapi.KVM_REG_RISCV_CORE, _CORE.index(register))


def csr(register: str) -> int:
    """CSR: S-level CSRs by name, those of AIA and Smstateen included."""
    for subtype, names in _CSR_SUBTYPES:
        if register in names:
            return register_id(uapi.KVM_REG_RISCV_CSR, names.index(register), subtype)
    raise ValueError(f"KVM has no CSR register {register!r}")


def timer(register: str) -> int:
    """TIMER: ``frequency`` in Hz, ``time`` (one for the whole machine) and ``compare`` in ticks, ``state``.

    Never write ``state`` 0: every kernel refuses it. Where the host has Sstc, ``compare`` alone is enough.
    """
    return register_id(uapi.KVM_REG_RISCV_TIMER, uapi.TIMER_REGISTERS.index(register))


def fp_d(index: int) -> int:
    """FP_D: f0..f31 as 64 bits; 32 is fcsr, which has 32 bits."""
    return register_id(uapi.KVM_REG_RISCV_FP_D, index, size=U64 if index < 32 else U32)


def fp_f(index: int) -> int:
    """FP_F: f0..f31 as 32 bits, then fcsr. The same storage as FP_D."""
    return register_id(uapi.KVM_REG_RISCV_FP_F, index, size=U32)


def vector_csr(register: str) -> int:
    """VECTOR: ``vstart``, ``vl``, ``vtype``, ``vcsr``, ``vlenb``."""
    return register_id(uapi.KVM_REG_RISCV_VECTOR, uapi.VECTOR_REGISTERS.index(register))


def vector(index: int, vlenb: int) -> int:
    """VECTOR: v0..v31, ``vlenb`` bytes each (a power of two, read from the register of that name)."""
    size = vlenb.bit_length() - 1
    return register_id(uapi.KVM_REG_RISCV_VECTOR, _VECTOR_FIRST + index, size=size)


def isa_extension(name: str) -> int:
    """ISA_EXT: one extension by its lower-case name. Raises ValueError for one KVM has no number for."""
    return register_id(uapi.KVM_REG_RISCV_ISA_EXT, ISA_EXTENSIONS.index(name), uapi.KVM_REG_RISCV_ISA_SINGLE)


def sbi_extension(name: str) -> int:
    """SBI_EXT: one extension by its lower-case name. Raises ValueError for one KVM has no number for."""
    return register_id(uapi.KVM_REG_RISCV_SBI_EXT, SBI_EXTENSIONS.index(name), uapi.KVM_REG_RISCV_SBI_SINGLE)


def isa_extensions(vcpu: Vcpu) -> dict[str, bool]:
    """Which ISA extensions this vCPU has. False: turned off, or unknown to this host.

    Reads the registers that hold 64 of them each: one ioctl for the lot instead of one for each.
    """
    return _enabled(vcpu, uapi.KVM_REG_RISCV_ISA_EXT | uapi.KVM_REG_RISCV_ISA_MULTI_EN, ISA_EXTENSIONS)


def sbi_extensions(vcpu: Vcpu) -> dict[str, bool]:
    """Which SBI extensions this vCPU offers its guest. False: turned off, or unknown to this host."""
    return _enabled(vcpu, uapi.KVM_REG_RISCV_SBI_EXT | uapi.KVM_REG_RISCV_SBI_MULTI_EN, SBI_EXTENSIONS)


def _enabled(vcpu: Vcpu, words: int, names: tuple[str, ...]) -> dict[str, bool]:
    bits = 0
    for word in range(0, len(names), _WORD_BITS):
        bits |= _read_or_zero(vcpu, register_id(words, word // _WORD_BITS)) << word
    return {name: bool(bits >> index & 1) for index, name in enumerate(names)}


def _read_or_zero(vcpu: Vcpu, register: int) -> int:
    try:
        return vcpu.get_reg(register)
    except KvmError as error:
        if error.errno != ENOENT:  # a kernel whose list ends before this word
            raise
        return 0


_CORE = (*uapi.CORE_REGISTERS, "mode")
_CSR_SUBTYPES = (
    (uapi.KVM_REG_RISCV_CSR_GENERAL, uapi.CSR_REGISTERS),
    (uapi.KVM_REG_RISCV_CSR_AIA, uapi.CSR_AIA_REGISTERS),
    (uapi.KVM_REG_RISCV_CSR_SMSTATEEN, uapi.CSR_SMSTATEEN_REGISTERS),
)


def name(register: int) -> str:
    """A register id in words, such as ``core.pc``, ``csr.sstatus`` or ``isa.zbb``; hex when unknown."""
    kind, subtype, index = register & 0xFF00_0000, register & 0xFF_0000, register & 0xFFFF
    found = _name_tables().get((kind, subtype))
    if found and index < len(found[1]):
        return f"{found[0]}.{found[1][index]}"
    return f"0x{register:016x}"


def _name_tables() -> dict[tuple[int, int], tuple[str, tuple[str, ...]]]:
    """(class, subclass) -> (name of the class, names by index). Built when needed: for errors and dumps."""
    floats = (*(f"f{i}" for i in range(32)), "fcsr")
    fwft = tuple(f"{feature}.{member}" for feature in uapi.SBI_FWFT_FEATURES for member in _FWFT_MEMBERS)
    isa_words, sbi_words = ("0", "1"), ("0",)
    tables = {
        (uapi.KVM_REG_RISCV_CONFIG, 0): ("config", uapi.CONFIG_REGISTERS),
        (uapi.KVM_REG_RISCV_CORE, 0): ("core", _CORE),
        (uapi.KVM_REG_RISCV_TIMER, 0): ("timer", uapi.TIMER_REGISTERS),
        (uapi.KVM_REG_RISCV_FP_F, 0): ("fp_f", floats),
        (uapi.KVM_REG_RISCV_FP_D, 0): ("fp_d", floats),
        (uapi.KVM_REG_RISCV_VECTOR, 0): (
            "vector",
            (*uapi.VECTOR_REGISTERS, *(f"v{i}" for i in range(32))),
        ),
        (uapi.KVM_REG_RISCV_ISA_EXT, uapi.KVM_REG_RISCV_ISA_SINGLE): ("isa", ISA_EXTENSIONS),
        (uapi.KVM_REG_RISCV_ISA_EXT, uapi.KVM_REG_RISCV_ISA_MULTI_EN): ("isa_enable", isa_words),
        (uapi.KVM_REG_RISCV_ISA_EXT, uapi.KVM_REG_RISCV_ISA_MULTI_DIS): ("isa_disable", isa_words),
        (uapi.KVM_REG_RISCV_SBI_EXT, uapi.KVM_REG_RISCV_SBI_SINGLE): ("sbi", SBI_EXTENSIONS),
        (uapi.KVM_REG_RISCV_SBI_EXT, uapi.KVM_REG_RISCV_SBI_MULTI_EN): ("sbi_enable", sbi_words),
        (uapi.KVM_REG_RISCV_SBI_EXT, uapi.KVM_REG_RISCV_SBI_MULTI_DIS): ("sbi_disable", sbi_words),
        (uapi.KVM_REG_RISCV_SBI_STATE, uapi.KVM_REG_RISCV_SBI_STA): ("sta", uapi.SBI_STA_REGISTERS),
        (uapi.KVM_REG_RISCV_SBI_STATE, uapi.KVM_REG_RISCV_SBI_FWFT): ("fwft", fwft),
    }
    for subtype, names in _CSR_SUBTYPES:
        tables[uapi.KVM_REG_RISCV_CSR, subtype] = ("csr", names)
    return tables
