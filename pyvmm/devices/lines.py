# SPDX-License-Identifier: Apache-2.0
"""Wires into a user-space interrupt controller."""

from __future__ import annotations

from pyvmm.errors import BusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class InputLine:
    """One input of a controller (protocol ``IrqLine``), whose ``drive(number, level)`` and ``pulse(number)``
    do the work."""

    __slots__ = ("_drive", "_pulse", "number")

    def __init__(self, number: int, drive: Callable[[int, bool], None], pulse: Callable[[int], None]) -> None:
        self.number = number
        self._drive = drive
        self._pulse = pulse

    def set(self, level: bool) -> None:
        """Drive the level. Idempotent."""
        self._drive(self.number, level)

    def pulse(self) -> None:
        """One rising edge: high, then low."""
        self._pulse(self.number)


def check_source(controller: str, number: int, sources: int) -> None:
    """Raise BusError unless ``number`` is one of the controller's ``sources``, which count from 1."""
    if not 1 <= number <= sources:
        raise BusError(f"The {controller} has sources 1 to {sources}; there is no source {number}.")
