# SPDX-License-Identifier: Apache-2.0
"""Late interrupts, once for many buffers, for queues whose driver does not wait for them.

A driver that spins until a buffer comes back (``VirtioDevice.at_once``) has no use for the interrupt, which
is dear: a system call here, a trap in the guest. So the used ring is written at once, and whether to
interrupt is judged later, over everything since the last time (virtio 1.2, 2.7.7 and 2.8.10): the driver's
event index then says how far it has come by itself. One that spins has all its buffers, and is left alone.

That is judged once nothing was used for the time between two looks. Looks come when another thread lets go
of the interpreter, which a vCPU's does just as it enters the guest: a spinning driver has not seen its buffer
yet. While it goes on to send, it does not wait.

A driver that does wait is found out so, and gets the next interrupts at once: not for ever, since the host
may not have run the guest for a while, but for longer each time in a row. So what it can send is not bound
by the looks. Nor does one wait for them that may have no buffer left to send, one pass having taken one.
Without the event index no driver could show what it has seen, and each is interrupted at once.

Looks come in pairs, ``SOON`` apart, the first one ``SOON`` after a buffer. There is another pair ``BUSY``
later while there are more buffers, and then there are none: an idle guest is left alone. Nothing of it is
saved: a queue knows what it was not asked about. Whatever a guest does, a session has one timer for it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.base import Timer
    from pyvmm.devices.virtio.session import ActiveQueue

#: Seconds between the looks of a pair, and between pairs while there is much output.
SOON, BUSY = 0.004, 0.04
# For so many passes over the queue a driver that waits is interrupted at once: the first time, and at most.
_SHORTLY, _LONG = 4, 4096


class Pace:
    """What is known of the driver of one queue."""

    __slots__ = ("fresh", "patience", "prompt", "put_off")

    def __init__(self) -> None:
        self.put_off = 0  # passes that were not judged yet
        self.fresh = False  # one of them came after the last look
        self.prompt = 0  # passes still to be interrupted for at once
        self.patience = _SHORTLY  # how many that will be when the driver is found waiting next


class LateInterrupts:
    """Those of one session, with whose lock held everything is called. ``call_later`` is the session's."""

    def __init__(
        self, call_later: Callable[[float, Callable[[], None]], Timer], interrupt: Callable[[int], None]
    ) -> None:
        self._call_later = call_later
        self._interrupt = interrupt
        self._queues: list[ActiveQueue] = []  # to be judged
        self._timer: Timer | None = None
        self._second = False  # the next look is the second one of a pair

    def put_off(self, queue: ActiveQueue) -> bool:
        """Whether the interrupt for what ``queue`` has used is judged later."""
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
        pace.fresh = True
        if queue not in self._queues:
            self._queues.append(queue)
            if self._timer is None:
                self._timer = self._call_later(SOON, self._look)
        return True

    def _look(self) -> None:
        if not self._queues:
            self._timer, self._second = None, False
            return
        self._second = not self._second
        self._timer = self._call_later(SOON if self._second else BUSY, self._look)
        queues, self._queues = self._queues, []
        for queue in queues:
            pace = queue.pace
            if pace is not None and pace.fresh:
                pace.fresh = False
                self._queues.append(queue)
            else:
                self._judge(queue)

    def _judge(self, queue: ActiveQueue) -> None:
        ring, pace = queue.ring, queue.pace
        if ring is None or pace is None or not pace.put_off:
            return  # it was reset, or judged meanwhile
        pace.put_off = 0
        if ring.should_interrupt():
            pace.prompt = pace.patience
            pace.patience = min(2 * pace.patience, _LONG)
            self._interrupt(queue.index)
        else:
            pace.patience = _SHORTLY

    def catch_up(self) -> None:
        """Send now what was put off and is waited for."""
        for queue in self._queues:
            self._judge(queue)

    def stop(self) -> None:
        """Look no more."""
        self._queues, self._second = [], False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
