# SPDX-License-Identifier: Apache-2.0
"""Target of the fuzzer: exits, and what comes between them, for the run loop in C and its twin in Python."""

from __future__ import annotations

from fakes.twins import (
    FREE,
    HUGE,
    HUGE_SIZE,
    PROBE,
    SAMPLE,
    STATUS,
    TOP,
    UART,
    Access,
    Filled,
    Happening,
    played,
)
from fuzz.reader import Reader

from pyvmm.kvm import uapi

MOST_STEPS = 100
_VALUES = (0, 1, 0xFF, 0x1_0001, 0xDEAD_BEEF, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
_REGISTERS = (-4, -2, 0, 2, 4, 8, 12, 0x10, 0x14, 0x20, 0x24, 0x2C, 0x30, 0x40, 0x60, 0x64, 0xFC, 0xFE, 0x100)
_ADDRESSES = (
    *range(UART - 1, UART + 9),
    *(SAMPLE + offset for offset in _REGISTERS),
    *(base + offset for base in (PROBE, FREE) for offset in (-1, 0, 1, 2, 3, 4, 0xFF8, 0xFFC, 0xFFF, 0x1000)),
    *(HUGE + offset for offset in (-1, 0, 2**32 - 1, 2**32, HUGE_SIZE - 4, HUGE_SIZE - 1, HUGE_SIZE)),
    *(STATUS + offset for offset in (0x58, 0x5C, 0x60, 0x62, 0x64, 0x66, 0x68)),
    *(TOP - 1, TOP, 2**64 - 8, 2**64 - 2, 2**64 - 1, 0),
)
_PLACES = (PROBE, FREE, UART - 0xFFC, UART + 0xFFC, 2**64 - 0x1000, 0)
_REASONS = (uapi.KVM_EXIT_MMIO, uapi.KVM_EXIT_INTR, uapi.KVM_EXIT_RISCV_CSR, uapi.KVM_EXIT_RISCV_SBI)
_LENGTHS = (1, 2, 4, 8)


def _load(reader):
    return Access(reader.one_of(_ADDRESSES), 0x5A5A_5A5A_5A5A_5A5A, reader.one_of(_LENGTHS), 0)


def _store(reader):
    return Access(reader.one_of(_ADDRESSES), reader.one_of(_VALUES), reader.one_of(_LENGTHS), 1)


def _store_anything(reader):
    return Access(reader.one_of(_ADDRESSES), reader.number(8), reader.one_of(_LENGTHS), 1)


def _any_access(reader):
    """As a kernel that has lost its mind may report one."""
    return Access(reader.number(8), reader.number(8), reader.number(4), reader.number(1))


def _filled(reader):
    return Filled(reader.one_of(_REASONS), reader.bytes(24))


def _any_reason(reader):
    return Filled(reader.number(4), reader.bytes(reader.number(1)))  # within the union


def _simple(reader):
    names = ("store", "forget", "trace", "no_trace", "post", "again", "csr", "unmap", "break")
    return Happening(reader.one_of(names))


def _placed(reader):
    return Happening(reader.one_of(("move", "race")), reader.one_of(_PLACES))


def _placed_anywhere(reader):
    return Happening(reader.one_of(("move", "race")), reader.number(8))


def _with_byte(reader):
    return Happening(reader.one_of(("know", "scribble")), reader.number(1))


def _interrupt(reader):
    return Happening("interrupt", reader.number(4))


def _answer(reader):
    return Happening("answer", reader.number(reader.number(1) % 33, signed=True))


def _fail(reader):
    return Happening("fail", reader.number(2) % 0x1000)


_STEPS = (
    *(_load, _store, _store_anything, _load, _store, _any_access, _filled, _any_reason),
    *(_simple, _placed, _placed_anywhere, _with_byte, _answer, _fail, _interrupt),
)


def steps(data):
    """What happens to the machine."""
    reader, found = Reader(data), []
    while reader and len(found) < MOST_STEPS:
        found.append(reader.one_of(_STEPS)(reader))
    return found


def check(data: bytes) -> None:
    """Fails when the twins do not agree about what ``data`` stands for."""
    found = steps(data)
    in_c, in_python = played(found, in_c=True), played(found, in_c=False)
    assert in_c == in_python, f"{found}\nin C:      {in_c}\nin Python: {in_python}"
