# SPDX-License-Identifier: Apache-2.0
"""Target of the fuzzer: virtqueues of both layouts in C and their twins in Python, with a hostile driver."""

from __future__ import annotations

from fakes.queuetwins import BASE, PAGE, ROM, SEAM, SIZE, Queue, Step, played
from fuzz.reader import Reader

MOST_STEPS = 60
_SIZES = (1, 2, 4, 8)
_FLAGS = (0, 1, 2, 3, 4, 5, 6, 7, 0x80, 0x81, 0x82, 0x84, 0x8000, 0x8001, 0x8002, 0x8004, 0x8080, 0x8082)
_ADDRESSES = (
    *(BASE + 0x2000 + offset for offset in (0, 1, 0x10, 0x18, 0x100, 0x7FF)),
    *(BASE, BASE - 1, SEAM - 1, SEAM - 0x10, SEAM, SEAM + PAGE - 1, SEAM + PAGE, ROM, ROM + PAGE - 8),
    *(0, 2**32, 2**63, 2**64 - 1, 2**64 - 0x10),
)
_LENGTHS = (0, 1, 8, 16, 17, 32, 48, 0x100, PAGE, SIZE, 16 * 1024, 16 * 1025, 2**31, 2**32 - 1)
_VALUES = (0, 1, 2, 7, 8, 9, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)


def _add(reader):
    readable = [reader.number(1) % 40 for _ in range(reader.number(1) % 3)]
    writable = [reader.number(1) % 40 for _ in range(reader.number(1) % 3)]
    return Step("add", (readable, writable, reader.one_of((False, True))))


def _descriptor(reader):
    fields = reader.one_of(_ADDRESSES), reader.one_of(_LENGTHS), reader.one_of(_FLAGS)
    return Step("descriptor", (reader.number(1), *fields, reader.number(1)))


def _any_descriptor(reader):
    fields = reader.number(8), reader.number(4), reader.number(2)
    return Step("descriptor", (reader.number(1), *fields, reader.number(2)))


def _poke(reader):
    return Step("poke", (reader.number(1) % 3, reader.number(1) & ~1, reader.one_of(_VALUES)))


def _poke_anything(reader):
    return Step("poke", (reader.number(1) % 3, reader.number(1), reader.number(2)))


def _offer(reader):
    return Step("offer", (reader.one_of(_VALUES),))


def _pop(_reader):
    return Step("pop")


def _simple(reader):
    return Step(reader.one_of(("should_interrupt", "pause_notify", "resume_notify")))


def _complete(reader):
    written = reader.one_of((0, 1, 0x100, 2**31, 2**32 - 0x100))
    return Step(reader.one_of(("complete", "complete_all")), (reader.number(1), written))


_STEPS = (
    *(_add, _add, _descriptor, _any_descriptor, _poke, _poke_anything, _offer, _offer),
    *(_pop, _pop, _pop, _simple, _simple, _complete, _complete),
)


def conversation(data):
    """The queue, and what happens to it."""
    reader, found = Reader(data), []
    kind = reader.number(1)
    queue = Queue(bool(kind & 1), reader.one_of(_SIZES), bool(kind & 2), bool(kind & 4), reader.number(2))
    while reader and len(found) < MOST_STEPS:
        found.append(reader.one_of(_STEPS)(reader))
    return queue, found


def check(data: bytes) -> None:
    """Fails when the twins do not agree about what ``data`` stands for."""
    queue, steps = conversation(data)
    in_c, in_python = played(queue, steps, in_c=True), played(queue, steps, in_c=False)
    assert in_c == in_python, f"{queue} {steps}\nin C:      {in_c}\nin Python: {in_python}"
