# SPDX-License-Identifier: Apache-2.0
"""Target of the fuzzer: the ordered operations in C, beside those of libatomic and of plain Python."""

from __future__ import annotations

import ctypes
import functools

from fuzz.reader import Reader

from pyvmm.errors import HostError
from pyvmm.ring import LIBATOMIC, NATIVE, PLAIN, Ring

SIZE = 16  # bytes: few, so that operations meet, and nothing around them, so that AddressSanitizer sees it
OPERATIONS = (
    *((name, bits) for name in ("load_acquire", "store_release", "peer", "rearm") for bits in (16, 32)),
    *(("set_bits", 32), ("clear_bits", 32)),
)
_WITH_VALUE = ("store_release", "rearm", "set_bits", "clear_bits")


@functools.cache
def _backends():
    rings = [Ring(NATIVE), Ring(PLAIN)]
    try:
        rings.append(Ring(LIBATOMIC))
    except HostError:
        pass  # it is not on every machine
    return rings


def operations(data):
    """What the memory holds at first, and the operations: name, width in bits, place, value, peer's place."""
    reader, found = Reader(data), []
    memory = reader.bytes(SIZE)
    while reader:
        name, bits = reader.one_of(OPERATIONS)
        width = bits // 8
        place = reader.number(1) % (SIZE // width) * width
        value = reader.number(width) if name in _WITH_VALUE else None
        peer = reader.number(1) % (SIZE // 2) * 2 if name == "rearm" else None
        found.append((name, bits, place, value, peer))
    return memory, found


def _seen(ring, memory, todo):
    """What the operations returned, and the memory after each of them."""
    words = (ctypes.c_ubyte * SIZE).from_buffer_copy(memory)
    start = ctypes.addressof(words)
    seen = []
    for name, bits, place, value, peer in todo:
        arguments = [start + place]
        arguments += [] if value is None else [value]
        arguments += [] if peer is None else [start + peer]
        result = getattr(ring, f"{name}{bits}")(*arguments)
        seen.append((None if name == "store_release" else result, bytes(words)))
    return seen


def check(data: bytes) -> None:
    """Fails when the backends do not agree about what ``data`` stands for."""
    memory, todo = operations(data)
    expected, *others = [(ring.backend, _seen(ring, memory, todo)) for ring in _backends()]
    for backend, seen in others:
        assert seen == expected[1], f"{memory} {todo}\n{expected}\n{backend}: {seen}"
