# SPDX-License-Identifier: Apache-2.0
"""Wires into a user-space interrupt controller."""

from __future__ import annotations

from pyvmm.errors import BusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class InputLine:
    """One input of a controller (protocol ``IrqLine``). ``drive(number, level)`` is the controller's."""

    __slots__ = ("_drive", "number")

    def __init__(self, number: int, drive: Callable[[int, bool], None]) -> None:
        self.number = number
        self._drive = drive

    def set(self, level: bool) -> None:
        """Drive the level. Idempotent."""
        self._drive(self.number, level)

    def pulse(self) -> None:
        """One rising edge: high, then low."""
        self._drive(self.number, True)
        self._drive(self.number, False)


def check_source(controller: str, number: int, sources: int) -> None:
    """Raise BusError unless ``number`` is one of the controller's ``sources``, which count from 1."""
    if not 1 <= number <= sources:
        raise BusError(f"The {controller} has sources 1 to {sources}; there is no source {number}.")
