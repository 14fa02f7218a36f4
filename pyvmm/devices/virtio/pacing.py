# SPDX-License-Identifier: Apache-2.0
"""Late interrupts, once for many buffers, for queues whose driver does not wait for them.

A driver that spins until a buffer comes back (``VirtioDevice.at_once``) has no use for the interrupt, which
is dear: a system call here, a trap in the guest. So the used ring is written at once, and whether to
interrupt is looked at a little later, over everything since the last look (virtio 1.2, 2.7.7 and 2.8.10):
the driver's event index then says how far it has come by itself. One that spins has all its buffers, and is
left alone.

A driver that does wait is found out by the first look, and gets the next interrupts at once: not for long,
since a look may fall between a buffer's return and the driver's noticing it, but for longer each time in a
row. So what it can send is not bound by the looks. Nor does one wait for them that has no buffer left to
send. Without the event index no driver could show what it has seen, and each is interrupted at once.

The first look comes ``SOON`` after a buffer, the next ones every ``BUSY`` while there are more; then there
are none, and an idle guest is left alone. Nothing of it is saved: a queue knows what it was not asked about.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.base import Timer
    from pyvmm.devices.virtio.session import ActiveQueue

#: Seconds until the first look, and between looks while there is much output.
SOON, BUSY = 0.002, 0.01
# For so many passes over the queue a driver that waits is interrupted at once: the first time, and at most.
_SHORTLY, _LONG = 16, 4096


class Pace:
    """What is known of the driver of one queue."""

    __slots__ = ("patience", "prompt", "put_off")

    def __init__(self) -> None:
        self.put_off = 0  # passes since the last look
        self.prompt = 0  # passes still to be interrupted for at once
        self.patience = _SHORTLY  # how many that will be when the next look finds the driver waiting


class LateInterrupts:
    """Those of one session, with whose lock held everything is called. ``call_later`` is the session's."""

    def __init__(
        self, call_later: Callable[[float, Callable[[], None]], Timer], interrupt: Callable[[int], None]
    ) -> None:
        self._call_later = call_later
        self._interrupt = interrupt
        self._queues: list[ActiveQueue] = []  # to be looked at
        self._timer: Timer | None = None

    def put_off(self, queue: ActiveQueue) -> bool:
        """Whether the interrupt for what ``queue`` has used is left to a look."""
        pace = queue.pace
        if pace is None:
            return False
        if pace.prompt:
            pace.prompt -= 1
            return False
        pace.put_off += 1
        if pace.put_off >= queue.size:  # it may be waiting for room
            pace.put_off = 0
            return False
        if queue not in self._queues:
            self._queues.append(queue)
            if self._timer is None:
                self._timer = self._call_later(SOON, self._look)
        return True

    def _look(self) -> None:
        self._timer = self._call_later(BUSY, self._look) if self._queues else None
        self.catch_up()

    def catch_up(self) -> None:
        """Send what was put off and is waited for."""
        queues, self._queues = self._queues, []
        for queue in queues:
            ring, pace = queue.ring, queue.pace
            if ring is None or pace is None or not pace.put_off:
                continue  # it was reset, or looked at meanwhile
            pace.put_off = 0
            if ring.should_interrupt():
                pace.prompt = pace.patience
                pace.patience = min(2 * pace.patience, _LONG)
                self._interrupt(queue.index)
            else:
                pace.patience = _SHORTLY

    def stop(self) -> None:
        """Look no more."""
        self._queues = []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
