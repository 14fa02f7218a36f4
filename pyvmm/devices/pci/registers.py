# SPDX-License-Identifier: Apache-2.0
"""Register maps whose registers lie side by side and are read and written several at a time.

Configuration space is one: a 4-byte store at 0x04 writes COMMAND and STATUS. So is a table of MSI-X entries,
where 8 bytes make an address.
"""

from __future__ import annotations

from pyvmm.mmio.regs import RegisterDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.base import After

#: Access sizes of 16-bit and of 32-bit registers that may be reached in part.
WORD, DWORD = (1, 2), (1, 2, 4)


class PackedRegisters(RegisterDevice):
    """A RegisterDevice in which an access that is not one register's is that of its two halves, low first.

    Its ``lock`` becomes that of the function it is put into. The reserved rest reads 0, and is counted.
    """

    def _build_reader(self, offset: int, size: int) -> Callable[[], int]:
        reader = super()._build_reader(offset, size)
        if size == 1 or reader != self._odd_read:
            return reader
        half = size // 2
        low, high = self._build_reader(offset, half), self._build_reader(offset + half, half)
        if low == high == self._odd_read:
            return low
        return lambda: low() | high() << 8 * half

    def _build_writer(self, offset: int, size: int) -> Callable[[int], After]:
        writer = super()._build_writer(offset, size)
        if size == 1 or writer != self._odd_write:
            return writer
        half = size // 2
        low, high = self._build_writer(offset, half), self._build_writer(offset + half, half)
        if low == high == self._odd_write:
            return low
        return lambda value: both(low(value & (1 << 8 * half) - 1), high(value >> 8 * half))

    def decode(self, offset: int, size: int, is_write: bool, value: int) -> tuple[str, str]:
        """Names and non-zero fields of the registers that an access reaches: ``("COMMAND+STATUS", ...)``."""
        if size == 1 or self._find(offset, size, "w" if is_write else "r"):
            return super().decode(offset, size, is_write, value)
        half = size // 2
        low, low_fields = self.decode(offset, half, is_write, value & (1 << 8 * half) - 1)
        high, high_fields = self.decode(offset + half, half, is_write, value >> 8 * half)
        names = [name for name in (low, high) if not name.startswith("+")] or [low]
        return "+".join(names), " ".join(fields for fields in (low_fields, high_fields) if fields)


def both(first: After, second: After) -> After:
    """One ``After`` that does what two ask for."""
    if first is None or second is None:
        return first or second

    def run() -> None:
        first()
        second()

    return run
