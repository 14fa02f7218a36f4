# SPDX-License-Identifier: Apache-2.0
"""A fuzzer's bytes as small numbers: any bytes are an input, and a change of one changes little else."""

from __future__ import annotations


class Reader:
    """Reads from ``data``; behind its end there are zeros."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def bytes(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        self._at += count
        return self._data[self._at - count : self._at].ljust(count, b"\0")

    def number(self, size: int, *, signed: bool = False) -> int:
        """The next ``size`` bytes, little-endian."""
        return int.from_bytes(self.bytes(size), "little", signed=signed)

    def one_of(self, choices):
        """An entry of ``choices``, of which there are at most 256."""
        return choices[self.number(1) % len(choices)]
