# SPDX-License-Identifier: Apache-2.0
"""Collaborators of devices that write down what they were told."""

from __future__ import annotations


class RecordingLine:
    """An IrqLine. ``level`` is the wire now, ``changes`` every change of it, ``pulses`` the edges."""

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self.level = False
        self.changes: list[bool] = []
        self.pulses = 0

    def set(self, level: bool) -> None:
        if level != self.level:
            self.level = level
            self.changes.append(level)

    def pulse(self) -> None:
        self.pulses += 1


class RecordingSignal:
    """A HartSignal. ``calls`` is everything that came in."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, bool]] = []

    def __call__(self, hart: int, asserted: bool) -> None:
        self.calls.append((hart, asserted))

    @property
    def asserted(self) -> set[int]:
        """The harts signalled now."""
        return {hart for hart, asserted in dict(self.calls).items() if asserted}


class RecordingSink:
    """A Sink. ``data`` is the output so far; ``after`` is what ``write`` returns."""

    def __init__(self) -> None:
        self.data = b""
        self.after = None

    def write(self, data: bytes):
        self.data += data
        return self.after
