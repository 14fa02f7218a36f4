# SPDX-License-Identifier: Apache-2.0
"""System suspend (SBI SUSP): the last running hart is parked until something happens.

KVM has checked the call and queued the resume; all other harts are stopped. What wakes the guest is what
would wake a board: a device raising its interrupt (the clock's alarm), or a key.
"""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.base import IrqLine


class Suspension:
    """Parks the vCPU thread that asked for it. ``wake`` and ``release`` come from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._suspended = False
        self._released = False
        self._asserted: set[int] = set()  # wires that are high

    def wait(self) -> None:
        """Sleep until woken; not at all while a wire is high. On the vCPU's thread, with no lock held."""
        with self._changed:
            self._suspended = not (self._released or self._asserted)
            while self._suspended:
                self._changed.wait()

    def wire(self, number: int, level: bool) -> None:
        """A wire was driven. Nearly free when that changes nothing."""
        if level != (number in self._asserted):
            with self._changed:
                if level:
                    self._asserted.add(number)
                else:
                    self._asserted.discard(number)
            if level:
                self.wake()

    def wake(self) -> None:
        """Something happened. Nearly free while nothing sleeps."""
        if self._suspended:
            with self._changed:
                self._suspended = False
                self._changed.notify_all()

    def release(self) -> None:
        """Wake, and never sleep again: the machine stops."""
        with self._changed:
            self._released = True
            self._suspended = False
            self._changed.notify_all()


class WakingLine:
    """An interrupt line whose rise ends a suspension (protocol ``IrqLine``)."""

    __slots__ = ("_line", "_suspension", "number")

    def __init__(self, line: IrqLine, suspension: Suspension) -> None:
        self._line = line
        self._suspension = suspension
        self.number = line.number

    def set(self, level: bool) -> None:
        """Drive the level."""
        self._line.set(level)
        self._suspension.wire(self.number, level)

    def pulse(self) -> None:
        """One rising edge."""
        self._line.pulse()
        self._suspension.wake()
