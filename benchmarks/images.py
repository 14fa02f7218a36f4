# SPDX-License-Identifier: Apache-2.0
"""Hand-made guests: flat kernel images of a few instructions, made with the tests' assembler."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

from pyvmm.layout import RAM_BASE, UART_BASE

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from fakes.asm import Asm

_TEXT_OFFSET = 0x20_0000
_HEADER_SIZE = 64
_SCRATCH = 7  # the 16550's scratch register: one byte that keeps what is stored, and does nothing
_SBI_SRST, _SHUTDOWN, _NO_REASON = 0x5352_5354, 0, 0


def stores(count: int) -> bytes:
    """A guest that stores ``count`` times to a device register, then powers off."""
    code = _begin(count)
    code.label("again")
    code.sb("a2", 0, "t0")
    return _finish(code)


def loads(count: int) -> bytes:
    """A guest that stores a byte to a device register, loads it ``count`` times, then powers off.

    It hangs when it does not get back what it stored.
    """
    code = _begin(count)
    code.sb("a2", 0, "t0")
    code.label("again")
    code.lbu("a3", 0, "t0")
    code.label("wrong")
    code.bne("a3", "a2", "wrong")
    return _finish(code)


def _begin(count: int) -> Asm:
    code = Asm(RAM_BASE + _TEXT_OFFSET + _HEADER_SIZE)
    code.li("t0", UART_BASE + _SCRATCH)
    code.li("t1", count)
    code.li("a2", 0x5A)
    return code


def _finish(code: Asm) -> bytes:
    code.addi("t1", "t1", -1)
    code.bne("t1", "zero", "again")
    code.sbi(_SBI_SRST, 0, _SHUTDOWN, _NO_REASON)
    body = code.assemble()
    return _header(len(body)) + body


def _header(size: int) -> bytes:
    """The header of a flat Image (Linux, Documentation/arch/riscv/boot-image-header.rst)."""
    jump_over_header = 0x0400_006F  # j .+64
    return struct.pack(
        "<IIQQQIIQQII",
        jump_over_header, 0, _TEXT_OFFSET, _HEADER_SIZE + size, 0, 2, 0, 0, 0, 0x0543_5352, 0,
    )  # fmt: skip
