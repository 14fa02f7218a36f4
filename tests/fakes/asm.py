# SPDX-License-Identifier: Apache-2.0
"""A small RV64 assembler for hand-made guests: one method an instruction, in assembly's own order.

    code = Asm(0x8000_0000)
    code.li("t0", 0x1000_0000)
    code.label("again")
    code.sb("a0", 0, "t0")          # sb a0, 0(t0)
    code.j("again")
    memory.write(0x8000_0000, code.assemble())

Encodings: RISC-V unprivileged and privileged ISA manuals.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partialmethod

_NAMES = "zero ra sp gp tp t0 t1 t2 s0 s1 a0 a1 a2 a3 a4 a5 a6 a7 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6"
REGISTERS = {name: number for number, name in enumerate(_NAMES.split())}

CSRS = {
    "seed": 0x015, "sstatus": 0x100, "sie": 0x104, "stvec": 0x105, "scounteren": 0x106, "sscratch": 0x140,
    "sepc": 0x141, "scause": 0x142, "stval": 0x143, "sip": 0x144, "siselect": 0x150, "sireg": 0x151,
    "stopei": 0x15C, "satp": 0x180, "time": 0xC01,
}  # fmt: skip

_LOAD, _STORE, _IMM, _BRANCH, _AMO, _SYSTEM = 0x03, 0x23, 0x13, 0x63, 0x2F, 0x73


class Asm:
    """Code that will lie at ``base``. Labels may be used before they are placed."""

    def __init__(self, base: int) -> None:
        self.base = base
        self._code = bytearray()
        self._labels: dict[str, int] = {}
        self._fixups: list[tuple[int, str, Callable[[int], int]]] = []

    @property
    def here(self) -> int:
        """The address of the next instruction."""
        return self.base + len(self._code)

    def label(self, name: str) -> None:
        """Give the next instruction a name."""
        self._labels[name] = self.here

    def address(self, name: str) -> int:
        """Where a placed label is."""
        return self._labels[name]

    def word(self, value: int) -> None:
        """Four bytes as they are: an instruction without a method here."""
        self._code += value.to_bytes(4, "little")

    def half(self, value: int) -> None:
        """Two bytes as they are: a compressed instruction."""
        self._code += value.to_bytes(2, "little")

    def align(self, boundary: int) -> None:
        """Zeros (an illegal instruction) up to a multiple of ``boundary``."""
        self._code += bytes(-len(self._code) % boundary)

    def assemble(self) -> bytes:
        """The bytes, with every label resolved."""
        code = bytearray(self._code)
        for offset, name, encode in self._fixups:
            word = encode(self._labels[name] - (self.base + offset))
            code[offset : offset + 4] = word.to_bytes(4, "little")
        return bytes(code)

    # Loads and stores: (register, offset, base register)

    def _load(self, funct3: int, rd: str, offset: int, base: str) -> None:
        self.word(_i_type(_LOAD, funct3, rd, base, offset))

    def _store(self, funct3: int, source: str, offset: int, base: str) -> None:
        imm = offset & 0xFFF
        rs1, rs2 = REGISTERS[base], REGISTERS[source]
        self.word((imm >> 5) << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12 | (imm & 31) << 7 | _STORE)

    lb, lh = partialmethod(_load, 0), partialmethod(_load, 1)
    lw, ld = partialmethod(_load, 2), partialmethod(_load, 3)
    lbu, lhu, lwu = partialmethod(_load, 4), partialmethod(_load, 5), partialmethod(_load, 6)
    sb, sh = partialmethod(_store, 0), partialmethod(_store, 1)
    sw, sd = partialmethod(_store, 2), partialmethod(_store, 3)

    def c_lw(self, rd: str, offset: int, base: str) -> None:
        """Compressed; s0, s1, a0..a5 only. So for the next three."""
        self.half(_c_word(0b010, rd, offset, base))

    def c_sw(self, source: str, offset: int, base: str) -> None:
        self.half(_c_word(0b110, source, offset, base))

    def c_ld(self, rd: str, offset: int, base: str) -> None:
        self.half(_c_double(0b011, rd, offset, base))

    def c_sd(self, source: str, offset: int, base: str) -> None:
        self.half(_c_double(0b111, source, offset, base))

    def amoadd_w(self, rd: str, source: str, base: str) -> None:
        """amoadd.w rd, source, (base)"""
        rs1, rs2 = REGISTERS[base], REGISTERS[source]
        self.word(rs2 << 20 | rs1 << 15 | 2 << 12 | REGISTERS[rd] << 7 | _AMO)

    # Arithmetic

    def addi(self, rd: str, source: str, imm: int) -> None:
        self.word(_i_type(_IMM, 0, rd, source, imm))

    def slli(self, rd: str, source: str, shift: int) -> None:
        self.word(_i_type(_IMM, 1, rd, source, shift))

    def lui(self, rd: str, imm20: int) -> None:
        self.word((imm20 & 0xFFFFF) << 12 | REGISTERS[rd] << 7 | 0x37)

    def mv(self, rd: str, source: str) -> None:
        self.addi(rd, source, 0)

    def li(self, rd: str, value: int) -> None:
        """Any 64-bit constant, in as many instructions as it takes."""
        value = (value + (1 << 63)) % (1 << 64) - (1 << 63)
        low = (value + 0x800) % 0x1000 - 0x800
        if -0x800 <= value < 0x800:
            self.addi(rd, "zero", value)
        elif -(1 << 31) <= value < (1 << 31) - 0x800:
            self.lui(rd, (value - low) >> 12)
            self.word(_i_type(0x1B, 0, rd, rd, low))  # addiw: lui extends the sign of bit 31
        else:
            self.li(rd, (value - low) >> 12)
            self.slli(rd, rd, 12)
            self.addi(rd, rd, low)

    # Control flow: targets are labels

    def _branch(self, funct3: int, left: str, right: str, target: str) -> None:
        rs1, rs2 = REGISTERS[left], REGISTERS[right]

        def encode(offset: int) -> int:
            high = (offset >> 12 & 1) << 31 | (offset >> 5 & 0x3F) << 25
            low = (offset >> 1 & 0xF) << 8 | (offset >> 11 & 1) << 7
            return high | rs2 << 20 | rs1 << 15 | funct3 << 12 | low | _BRANCH

        self._fixup(target, encode)

    beq, bne = partialmethod(_branch, 0), partialmethod(_branch, 1)

    def jal(self, rd: str, target: str) -> None:
        def encode(offset: int) -> int:
            high = (offset >> 20 & 1) << 31 | (offset >> 1 & 0x3FF) << 21
            low = (offset >> 11 & 1) << 20 | (offset >> 12 & 0xFF) << 12
            return high | low | REGISTERS[rd] << 7 | 0x6F

        self._fixup(target, encode)

    def j(self, target: str) -> None:
        self.jal("zero", target)

    def jalr(self, rd: str, base: str, offset: int = 0) -> None:
        self.word(_i_type(0x67, 0, rd, base, offset))

    def _fixup(self, target: str, encode: Callable[[int], int]) -> None:
        self._fixups.append((len(self._code), target, encode))
        self.word(0)

    # System

    def ecall(self) -> None:
        self.word(0x0000_0073)

    def ebreak(self) -> None:
        self.word(0x0010_0073)

    def wfi(self) -> None:
        self.word(0x1050_0073)

    def fence(self) -> None:
        """fence rw, rw"""
        self.word(0x0330_000F)

    def csrrw(self, rd: str, csr: str, source: str) -> None:
        self.word(_i_type(_SYSTEM, 1, rd, source, CSRS[csr]))

    def csrr(self, rd: str, csr: str) -> None:
        self.word(_i_type(_SYSTEM, 2, rd, "zero", CSRS[csr]))

    def csrw(self, csr: str, source: str) -> None:
        self.csrrw("zero", csr, source)

    def sbi(self, extension: int, function: int, *arguments: int) -> None:
        """Load a7, a6, a0... and ecall."""
        self.li("a7", extension)
        self.li("a6", function)
        for number, value in enumerate(arguments):
            self.li(f"a{number}", value)
        self.ecall()


def _i_type(opcode: int, funct3: int, rd: str, base: str, imm: int) -> int:
    return (imm & 0xFFF) << 20 | REGISTERS[base] << 15 | funct3 << 12 | REGISTERS[rd] << 7 | opcode


def _c_word(funct3: int, register: str, offset: int, base: str) -> int:
    imm = (offset >> 3 & 7) << 10 | (offset >> 2 & 1) << 6 | (offset >> 6 & 1) << 5
    return funct3 << 13 | imm | (REGISTERS[base] - 8) << 7 | (REGISTERS[register] - 8) << 2


def _c_double(funct3: int, register: str, offset: int, base: str) -> int:
    imm = (offset >> 3 & 7) << 10 | (offset >> 6 & 3) << 5
    return funct3 << 13 | imm | (REGISTERS[base] - 8) << 7 | (REGISTERS[register] - 8) << 2
