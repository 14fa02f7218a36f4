# SPDX-License-Identifier: Apache-2.0
"""A clock that stands still until it is told to go on."""

from __future__ import annotations


class FakeTimer:
    def __init__(self, when_ns: int, callback) -> None:
        self.when_ns = when_ns
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeClock:
    """A Clock. ``advance`` moves time and runs the timers that came due, in order."""

    def __init__(self, now_ns: int = 0) -> None:
        self.time_ns = now_ns
        self.timers: list[FakeTimer] = []

    def now_ns(self) -> int:
        return self.time_ns

    def call_at(self, when_ns: int, callback) -> FakeTimer:
        timer = FakeTimer(when_ns, callback)
        self.timers.append(timer)
        return timer

    @property
    def pending(self) -> list[FakeTimer]:
        """Timers that have neither run nor been cancelled, soonest first."""
        return sorted((t for t in self.timers if not t.cancelled), key=lambda timer: timer.when_ns)

    def advance(self, ns: int) -> None:
        until = self.time_ns + ns
        while self.pending and self.pending[0].when_ns <= until:
            timer = self.pending[0]
            self.timers.remove(timer)
            self.time_ns = max(self.time_ns, timer.when_ns)
            timer.callback()
        self.time_ns = until
