# SPDX-License-Identifier: Apache-2.0
"""INTx: level-triggered wires that several functions share (PCI Local Bus 3.0, section 2.2.6)."""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.base import IrqLine

#: INTA to INTD.
WIRES = 4


class SharedWire:
    """A wire that is high while any of its inputs is.

    Its lock comes after the functions' and before the interrupt controller's. It is held while the line is
    driven, or two changes could reach the line in the wrong order.
    """

    __slots__ = ("_high", "_inputs", "_line", "_lock")

    def __init__(self, line: IrqLine) -> None:
        self._line = line
        self._lock = threading.Lock()
        self._inputs = 0
        self._high = 0

    def input(self) -> WireInput:
        """One more function's end of the wire."""
        self._inputs += 1
        return WireInput(self, 1 << self._inputs, self._line.number)

    def drive(self, bit: int, level: bool) -> None:
        """Set one input's level; ``bit`` is its own."""
        with self._lock:
            before, self._high = self._high, self._high | bit if level else self._high & ~bit
            if (self._high != 0) != (before != 0):
                self._line.set(level)


class WireInput:
    """An IrqLine: one function's end of a SharedWire."""

    __slots__ = ("_bit", "_wire", "number")

    def __init__(self, wire: SharedWire, bit: int, number: int) -> None:
        self._wire = wire
        self._bit = bit
        self.number = number

    def set(self, level: bool) -> None:
        """Drive this function's level. Idempotent."""
        self._wire.drive(self._bit, level)

    def pulse(self) -> None:
        """One rising edge, unless another function holds the wire high."""
        self.set(True)
        self.set(False)


def wire_of(slot: int, pin: int) -> int:
    """Which of the wires pin ``pin`` (1 to 4) of a slot is connected to: neighbours use different ones."""
    return (slot + pin - 1) % WIRES
