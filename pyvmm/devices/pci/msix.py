# SPDX-License-Identifier: Apache-2.0
"""The MSI-X capability, its table and its pending bits (PCI Local Bus 3.0, section 6.8.2).

A vector is open while MSI-X is enabled and neither the function nor the vector is masked. The pending bits
are those of the lines: a shut line keeps its signal and delivers it when it is opened, whoever sent it, so
a kernel half of the device is masked like a device model.

What a hostile guest can do: fill the table with garbage. Messages go to interrupt files of its own harts or
nowhere; vectors beyond the table do not exist; nothing here grows with what is written.
"""

from __future__ import annotations

from pyvmm.devices.pci.bar import Bar
from pyvmm.devices.pci.capability import Capability
from pyvmm.devices.pci.registers import DWORD, WORD, PackedRegisters
from pyvmm.mmio.regs import Bit, Field, Reg, RegArray

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.base import MsiLine
    from pyvmm.devices.pci.capability import MsiLines

_FUNCTION_MASK, _ENABLE = 1 << 14, 1 << 15
_MASKED = 1
_ENTRY = 16
_PENDING = 0x800

#: The most vectors that a function can have: what fits before the pending bits.
MAX_VECTORS = _PENDING // _ENTRY


class MsixTable(PackedRegisters):
    """Table and pending bits: the device behind a BAR of 4 KiB. Its lock is the function's."""

    NAME = "msix-table"
    SIZE = 0x1000
    STATE = ("kept",)

    ADDRESS = RegArray(
        0x00,
        count=MAX_VECTORS,
        stride=_ENTRY,
        fields={"address": Field(2, 30)},
        on_write="_write_address",
    )
    UPPER_ADDRESS = RegArray(0x04, count=MAX_VECTORS, stride=_ENTRY, on_write="_write_upper_address")
    DATA = RegArray(0x08, count=MAX_VECTORS, stride=_ENTRY, on_write="_write_data")
    VECTOR_CONTROL = RegArray(
        0x0C,
        count=MAX_VECTORS,
        stride=_ENTRY,
        fields={"masked": Bit(0)},
        reset=_MASKED,
        on_write="_write_control",
    )
    PENDING = RegArray(
        _PENDING, 64, count=MAX_VECTORS // 64, access="r", on_read="_read_pending", sizes=(4, 8)
    )

    def __init__(self, vectors: int, lines: MsiLines) -> None:
        super().__init__(ADDRESS=vectors, UPPER_ADDRESS=vectors, DATA=vectors, VECTOR_CONTROL=vectors)
        self.lines: list[MsiLine] = [lines() for _ in range(vectors)]
        self._enabled = False
        self._open = [False] * vectors
        self.reset()

    def reset(self) -> None:
        """All masked, nothing pending."""
        super().reset()
        self._update_all()
        for line in self.lines:
            line.clear()

    @property
    def kept(self) -> list[bool]:
        """Which vectors have a message kept back."""
        return [line.pending() for line in self.lines]

    @kept.setter
    def kept(self, pending: list[bool]) -> None:
        for vector, (line, is_pending) in enumerate(zip(self.lines, pending, strict=True)):
            self._shut(vector)
            line.clear()
            if is_pending:
                line.signal()

    def enable(self, enabled: bool) -> None:
        """Let vectors that are not masked themselves deliver, or none."""
        self._enabled = enabled
        self._update_all()

    def _restored(self) -> None:
        self._update_all()

    def _update_all(self) -> None:
        for vector in range(len(self.lines)):
            self._update(vector)

    def _update(self, vector: int) -> None:
        if not self._enabled or self.VECTOR_CONTROL[vector] & _MASKED:
            self._shut(vector)
        elif not self._open[vector]:
            self._program(vector)
            self.lines[vector].open()
            self._open[vector] = True

    def _shut(self, vector: int) -> None:
        if self._open[vector]:
            self.lines[vector].shut()
            self._open[vector] = False

    def _program(self, vector: int) -> None:
        address = self.UPPER_ADDRESS[vector] << 32 | self.ADDRESS[vector]
        self.lines[vector].program(address, self.DATA[vector])

    def _changed(self, vector: int) -> None:
        if self._open[vector]:
            self._program(vector)

    def _write_address(self, vector: int, value: int) -> None:
        self.ADDRESS[vector] = value
        self._changed(vector)

    def _write_upper_address(self, vector: int, value: int) -> None:
        self.UPPER_ADDRESS[vector] = value
        self._changed(vector)

    def _write_data(self, vector: int, value: int) -> None:
        self.DATA[vector] = value
        self._changed(vector)

    def _write_control(self, vector: int, value: int) -> None:
        self.VECTOR_CONTROL[vector] = value
        self._update(vector)

    def _read_pending(self, word: int) -> int:
        lines = self.lines[64 * word : 64 * word + 64]
        return sum(line.pending() << bit for bit, line in enumerate(lines))


class Msix(Capability):
    """MSI-X with ``vectors`` vectors. Give the function ``bar`` too, which holds the table.

    Its lock is the function's; ``signal`` is called with it held. Raises ValueError for more than
    MAX_VECTORS.
    """

    ID = 0x11
    NAME = "msix"
    SIZE = 0x0C

    MESSAGE_CONTROL = Reg(
        0x02,
        16,
        fields={"table_size": Field(0, 11, "r"), "function_mask": Bit(14), "enable": Bit(15)},
        on_write="_write_control",
        sizes=WORD,
    )
    TABLE = Reg(0x04, 32, access="r", on_read="_read_table", sizes=DWORD)
    PENDING_BITS = Reg(0x08, 32, access="r", on_read="_read_pending_bits", sizes=DWORD)

    def __init__(self, vectors: int, lines: MsiLines, *, bar: int) -> None:
        if not 1 <= vectors <= MAX_VECTORS:
            raise ValueError(f"MSI-X here has 1 to {MAX_VECTORS} vectors, not {vectors}")
        super().__init__()
        self.table = MsixTable(vectors, lines)
        self.bar = Bar(bar, MsixTable.SIZE, self.table)
        self.reset()

    def reset(self) -> None:
        """Disabled."""
        super().reset()
        self.MESSAGE_CONTROL = self.vectors - 1
        self._restored()

    @property
    def vectors(self) -> int:
        """How many there are."""
        return len(self.table.lines)

    @property
    def replaces_intx(self) -> bool:
        """Whether MSI-X is enabled."""
        return bool(self.MESSAGE_CONTROL & _ENABLE)

    def line(self, vector: int) -> MsiLine | None:
        """The line of a vector, for a kernel half; None when the guest named one that does not exist."""
        return self.table.lines[vector] if 0 <= vector < self.vectors else None

    def signal(self, vector: int) -> bool:
        """Send a vector's message; False when MSI-X is disabled and the wire is to be used.

        A vector that does not exist is counted and sends nothing.
        """
        if not self.MESSAGE_CONTROL & _ENABLE:
            return False
        lines = self.table.lines
        if 0 <= vector < len(lines):
            lines[vector].signal()
        else:
            self.odd += 1
        return True

    def close(self) -> None:
        """Release the lines."""
        for line in self.table.lines:
            line.close()

    def _restored(self) -> None:
        self.table.enable(self.replaces_intx and not self.MESSAGE_CONTROL & _FUNCTION_MASK)

    def _write_control(self, value: int) -> None:
        self.MESSAGE_CONTROL = value
        self._restored()
        self.function.update_intx()

    def _read_table(self) -> int:
        return self.bar.index

    def _read_pending_bits(self) -> int:
        return _PENDING | self.bar.index
