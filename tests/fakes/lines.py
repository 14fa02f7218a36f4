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


class RecordingMsiLine:
    """An MsiLine. ``delivered`` are the messages that arrived, as (address, data)."""

    def __init__(self) -> None:
        self.fd = -1
        self.message: tuple[int, int] | None = None
        self.programmed: list[tuple[int, int]] = []
        self.is_open = False
        self.is_closed = False
        self.waiting = False
        self.delivered: list[tuple[int, int] | None] = []

    def program(self, address: int, data: int) -> None:
        self.message = (address, data)
        self.programmed.append(self.message)

    def open(self) -> None:
        self.is_open = True
        if self.waiting:
            self.waiting = False
            self.delivered.append(self.message)

    def shut(self) -> None:
        self.is_open = False

    def signal(self) -> None:
        if self.is_open:
            self.delivered.append(self.message)
        else:
            self.waiting = True

    def pending(self) -> bool:
        return self.waiting

    def clear(self) -> None:
        assert not self.is_open, "cleared while open"
        self.waiting = False

    def close(self) -> None:
        self.is_closed = True


class RecordingMsiLines:
    """Makes RecordingMsiLines; ``made`` are those it made."""

    def __init__(self) -> None:
        self.made: list[RecordingMsiLine] = []

    def __call__(self) -> RecordingMsiLine:
        self.made.append(RecordingMsiLine())
        return self.made[-1]
