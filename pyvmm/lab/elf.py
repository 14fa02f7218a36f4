# SPDX-License-Identifier: Apache-2.0
"""Which shared libraries an ELF file needs (System V ABI, chapter 5)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_STRTAB = 1, 5
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_DYNAMIC_ENTRY = struct.Struct("<qQ")


def needed(data: bytes) -> list[str]:
    """The DT_NEEDED names of a 64-bit little-endian ELF file; none for any other file."""
    if data[:6] != b"\x7fELF\x02\x01":
        return []
    offset, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    headers = [_PROGRAM_HEADER.unpack_from(data, offset + i * size) for i in range(count)]
    entries = [entry for head in headers if head[0] == _PT_DYNAMIC for entry in _dynamic(data, head)]
    table = next((value for tag, value in entries if tag == _DT_STRTAB), 0)
    start = next(
        (h[2] + table - h[3] for h in headers if h[0] == _PT_LOAD and h[3] <= table < h[3] + h[5]), 0
    )
    return [_string(data, start + value) for tag, value in entries if tag == _DT_NEEDED]


def libraries(programs: Iterable[Path], directory: Path) -> set[str]:
    """Names of the files in ``directory`` that ``programs`` need, directly or through others."""
    found: set[str] = set()
    todo = list(programs)
    while todo:
        for name in needed(todo.pop().read_bytes()):
            if name not in found and (directory / name).exists():
                found.add(name)
                todo.append(directory / name)
    return found


def _dynamic(data: bytes, head: tuple[int, ...]) -> list[tuple[int, int]]:
    section = data[head[2] : head[2] + head[5] // _DYNAMIC_ENTRY.size * _DYNAMIC_ENTRY.size]
    return list(_DYNAMIC_ENTRY.iter_unpack(section))


def _string(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode()
