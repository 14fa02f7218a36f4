# SPDX-License-Identifier: Apache-2.0
"""Target of the fuzzer: frames moved in C and by their twin in Python, or in C alone for a hostile driver."""

from __future__ import annotations

from fakes.nettwins import ELSEWHERE, RAM, RAM_SIZE, Setup, Step, endured, played
from fuzz.reader import Reader

MOST_STEPS = 40
_QUEUE_SIZES = (4, 16, 64)
_PIECES = (1, 2, 9, 12, 26, 100, 1500, 5000)
_WHOLE = ((1526,), (12, 4096), (70000,))
_ARRIVING = (0, 11, 25, 26, 72, 1500, 5000, 65000)
_SENT = (0, 1, 12, 13, 60, 1500, 50000)
_SENT_ELSEWHERE = (10, 60, 1500)
_WRITABLE = ((), (), (8,))
_LOOKS = ("wants_kick", "enable_interrupts", "disable_interrupts", "collect", "collect")
_ADDRESSES = (0, RAM - 1, RAM, RAM + RAM_SIZE - 1, ELSEWHERE, 2**64 - 16)
_LENGTHS = (16, 4096, 2**31, 2**32 - 1)
_BOTH = (False, True)


def _several(reader, choices, least, most):
    count = least + reader.number(1) % (most - least + 1)
    return tuple(reader.one_of(choices) for _ in range(count))


def _queue(reader):
    return reader.number(1) % 2


def _offer_pieces(reader):
    return _offer(reader, _several(reader, _PIECES, 1, 4))


def _offer_whole(reader):
    return _offer(reader, reader.one_of(_WHOLE))


def _offer(reader, sizes):
    how = reader.number(1)
    return Step("offer", (sizes, bool(how & 1), how & 6 == 6, 1 + (how >> 4)))


def _arrive(reader):
    return Step("arrive", (_several(reader, _ARRIVING, 1, 4),))


def _send(reader):
    return Step("queue", (_several(reader, _SENT, 0, 5), reader.one_of(_WRITABLE), reader.one_of(_BOTH)))


def _send_large(reader):
    return Step("queue", ((12, 32000), reader.one_of(_WRITABLE), reader.one_of(_BOTH)))


def _send_elsewhere(reader):
    return Step("queue_elsewhere", (reader.one_of(_SENT_ELSEWHERE),))


def _kick(reader):
    return Step("kick", (_queue(reader),))


def _look(reader):
    return Step(reader.one_of(_LOOKS), (_queue(reader),))


def _take(_reader):
    return Step("take")


def _link(reader):
    return Step("link", (reader.one_of(_BOTH),))


def _raw(reader):
    descriptors = [
        (_address(reader), reader.one_of((*_LENGTHS, *range(0, 100, 7))), reader.number(1) % 8)
        for _ in range(1 + reader.number(1) % 3)
    ]
    return Step("raw", (_queue(reader), descriptors))


def _address(reader):
    place = reader.one_of((*_ADDRESSES, None))
    return RAM + reader.number(3) % 0x4_1001 if place is None else place


def _poke(reader):
    return Step("poke", (_queue(reader), reader.number(1) % 3, reader.number(1) % 151, reader.number(2)))


_HONEST = (
    *(_offer_pieces, _offer_whole, _arrive, _arrive, _send, _send, _send_large, _send_elsewhere),
    *(_kick, _kick, _kick, _look, _look, _take, _link),
)
_HOSTILE = (*_HONEST, *[_raw] * 4, *[_poke] * 4)


def conversation(data):
    """The card, what happens to it, and whether its driver is hostile."""
    reader, found = Reader(data), []
    kind = reader.number(1)
    setup = Setup(bool(kind & 1), bool(kind & 2), bool(kind & 4), reader.one_of(_QUEUE_SIZES))
    hostile = bool(kind & 8)
    while reader and len(found) < MOST_STEPS:
        found.append(reader.one_of(_HOSTILE if hostile else _HONEST)(reader))
    return setup, found, hostile


def check(data: bytes) -> None:
    """Fails when the twins do not agree about what ``data`` stands for, or a card does not survive it."""
    setup, steps, hostile = conversation(data)
    if hostile:
        assert endured(setup, steps), f"{setup} {steps}"
        return
    in_c, in_python = played(setup, steps, in_c=True), played(setup, steps, in_c=False)
    differing = [pair for pair in zip(in_c, in_python, strict=True) if pair[0] != pair[1]][:1]
    assert not differing, f"{setup} {steps}\nin C:      {differing[0][0]}\nin Python: {differing[0][1]}"
