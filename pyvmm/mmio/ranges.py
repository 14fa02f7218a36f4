# SPDX-License-Identifier: Apache-2.0
"""A range of guest physical addresses."""

from __future__ import annotations

from pyvmm.errors import BusError

#: One past the highest guest physical address.
ADDRESS_LIMIT = 1 << 64


class Range:
    """Addresses ``base`` to ``last``, both included; ``size`` bytes. A value: never changed once made.

    Raises BusError when ``size`` is not positive or the range leaves the 64-bit address space.
    """

    __slots__ = ("base", "last", "size")

    def __init__(self, base: int, size: int) -> None:
        if size <= 0:
            raise BusError(f"A range at 0x{base:x} needs a size above zero, not {size}.")
        if base < 0 or base + size > ADDRESS_LIMIT:
            raise BusError(f"A range of 0x{size:x} bytes at 0x{base:x} leaves the 64-bit address space.")
        self.base = base
        self.size = size
        self.last = base + size - 1

    def overlaps(self, other: Range) -> bool:
        """Whether the two share an address."""
        return self.base <= other.last and other.base <= self.last

    def __contains__(self, address: int) -> bool:
        return self.base <= address <= self.last

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Range) and (self.base, self.size) == (other.base, other.size)

    def __hash__(self) -> int:
        return hash((self.base, self.size))

    def __str__(self) -> str:
        return f"0x{self.base:x}-0x{self.last:x}"

    def __repr__(self) -> str:
        return f"Range(0x{self.base:x}, 0x{self.size:x})"
