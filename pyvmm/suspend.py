# SPDX-License-Identifier: Apache-2.0
"""System suspend (SBI SUSP): the last running hart is parked until something happens.

KVM has checked the call and queued the resume; all other harts are stopped. What wakes the guest is what
would wake a board: a device raising its interrupt (the clock's alarm), or a key.

The thread of a parked vCPU still runs what is posted to it, so that a suspended guest can be paused and
looked at like any other.
"""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from pyvmm.devices.base import IrqLine

    class Hart(Protocol):
        """The thread of the hart that asked for it."""

        def park(self, reason: object) -> None:
            """Keep the guest from going on, from the next entry on."""

        def unpark(self, reason: object) -> None:
            """Let it go on."""


class Suspension:
    """Parks the vCPU that asked for it. ``wake`` and ``release`` come from any thread."""

    def __init__(self, pending: Callable[[], bool]) -> None:
        """``pending()``: whether the guest has yet to look at what was told it by a pulse, which is gone.

        It must take no lock. Messages that wait in the kernel are not looked at.
        """
        self._pending = pending
        self._lock = threading.Lock()  # a leaf but for the parking of vCPUs
        self._asleep: Hart | None = None
        self._released = False
        self._asserted: set[int] = set()  # wires that are high

    def begin(self, hart: Hart) -> None:
        """Let ``hart`` sleep until woken; not at all while an interrupt is there. On its own thread."""
        with self._lock:
            self._asleep = hart  # first: what is told by a pulse from now on wakes
            if self._released or self._asserted or self._pending():
                self._asleep = None
            else:
                hart.park(self)

    def wire(self, number: int, level: bool) -> None:
        """A wire was driven. Nearly free when that changes nothing."""
        if level != (number in self._asserted):
            with self._lock:
                if level:
                    self._asserted.add(number)
                else:
                    self._asserted.discard(number)
            if level:
                self.wake()

    def wake(self) -> None:
        """Something happened. Nearly free while nothing sleeps."""
        if self._asleep is not None:
            with self._lock:
                hart, self._asleep = self._asleep, None
                if hart is not None:
                    hart.unpark(self)

    def release(self) -> None:
        """Wake, and never sleep again: the machine stops."""
        with self._lock:
            self._released = True
        self.wake()


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
