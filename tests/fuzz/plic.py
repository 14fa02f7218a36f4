# SPDX-License-Identifier: Apache-2.0
"""Target of the fuzzer: the PLIC's core in C and its twin in Python, with a hostile guest and busy wires."""

from __future__ import annotations

from fakes.plictwins import ENABLE, MOST_HARTS, NUMBERS, STRIDE, THRESHOLD, Make
from fakes.plictwins import check as check_twins
from fuzz.reader import Reader

MOST_STEPS = 60
_SOURCES = (63, 1, 31, 32, 40, 64, 65, 127, 128, 1023)
_ANY_NUMBERS = (*NUMBERS, 0, 3, 41, 1024, 2**31, 2**32 - 1)
_VALUES = (0, 1, 2, 6, 7, 8, 2**31, 2**32 - 1)
_LANES = (0, 0, 0, 0, 1, 4, 8)
_LENGTHS = (4, 4, 4, 4, 1, 2, 8)


def _context(reader):
    return reader.number(1) % (MOST_HARTS + 1)  # the last is never there


def _claim_register(reader):
    return STRIDE * _context(reader) + reader.one_of(_LANES), reader.one_of(_LENGTHS)


def _drive(reader):
    return "drive", reader.number(1), reader.one_of((True, False))


def _pulse(reader):
    return "pulse", reader.number(1)


def _priority(reader):
    return "write", 4 * reader.one_of(NUMBERS), reader.one_of(_VALUES)


def _threshold(reader):
    return "write", THRESHOLD + STRIDE * _context(reader), reader.one_of(_VALUES)


def _enable(reader):
    return "write", ENABLE + 0x80 * _context(reader) + 4 * (reader.number(1) % 32), reader.number(4)


def _claim(reader):
    return "claim", *_claim_register(reader)


def _complete(reader):
    return "complete", *_claim_register(reader), reader.one_of(_ANY_NUMBERS)


def _complete_claimed(reader):
    return "complete_claimed", _context(reader)


def _rare(reader):
    return (reader.one_of(("reset", "restore")),)


_STEPS = (
    *(_drive, _drive, _pulse, _priority, _threshold, _enable),
    *(_claim, _claim, _complete, _complete_claimed, _complete_claimed, _rare),
)


def conversation(data):
    """The PLIC, and what happens to it."""
    reader, found = Reader(data), []
    sources, harts, edges = reader.one_of(_SOURCES), 1 + reader.number(1) % MOST_HARTS, reader.number(2)
    make = Make(
        sources,
        harts,
        {number for index, number in enumerate(NUMBERS) if edges >> index & 1},
        [reader.number(1) % 8 for _ in NUMBERS],
    )
    while reader and len(found) < MOST_STEPS:
        found.append(reader.one_of(_STEPS)(reader))
    return make, found


def check(data: bytes) -> None:
    """Fails when the twins do not agree about what ``data`` stands for."""
    check_twins(*conversation(data))
