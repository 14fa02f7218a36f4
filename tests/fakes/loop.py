# SPDX-License-Identifier: Apache-2.0
"""An event loop and worker threads that do nothing until a test lets them: no threads, no waiting."""

from __future__ import annotations

import select
from collections import deque


class FakeWatch:
    def __init__(self, loop: FakeLoop, fd: int, callback, events: int) -> None:
        self.loop = loop
        self.fd = fd
        self.callback = callback
        self.events = events

    def close(self) -> None:
        if self in self.loop.watches:
            self.loop.watches.remove(self)

    def modify(self, events: int) -> None:
        self.events = events


class FakeTimer:
    def __init__(self, when: float, callback) -> None:
        self.when = when
        self.callback = callback

    def cancel(self) -> None:
        self.callback = None


class FakeLoop:
    """A Loop. ``run`` does everything that can be done now; ``advance`` moves its clock, in seconds."""

    def __init__(self) -> None:
        self.calls: deque = deque()
        self.watches: list[FakeWatch] = []
        self.timers: list[FakeTimer] = []
        self.now = 0.0

    def watch(self, fd: int, callback, events: int = select.EPOLLIN) -> FakeWatch:
        watch = FakeWatch(self, fd, callback, events)
        self.watches.append(watch)
        return watch

    def call_soon(self, callback) -> None:
        self.calls.append(callback)

    def call_later(self, seconds: float, callback) -> FakeTimer:
        timer = FakeTimer(self.now + seconds, callback)
        self.timers.append(timer)
        return timer

    def run(self, passes: int = 10_000) -> None:
        """Run posted calls and ready watches until nothing is left. Fails when that never happens."""
        for _ in range(passes):
            if not self.run_once():
                return
        raise AssertionError("the loop never comes to rest")

    def run_once(self) -> bool:
        """One pass; whether there was anything to do."""
        busy = False
        for _ in range(len(self.calls)):
            self.calls.popleft()()
            busy = True
        for watch, events in self._ready():
            if watch in self.watches:
                watch.callback(events)
                busy = True
        return busy

    def _ready(self) -> list:
        poller = select.poll()
        for watch in self.watches:  # also those that wait for nothing: errors and hang-ups come anyway
            poller.register(watch.fd, watch.events)
        ready = dict(poller.poll(0))
        return [(watch, ready[watch.fd]) for watch in self.watches if watch.fd in ready]

    def advance(self, seconds: float) -> None:
        """Let time pass, timer by timer, and run what follows from each."""
        until = self.now + seconds
        while True:
            due = sorted(
                (timer for timer in self.timers if timer.callback is not None and timer.when <= until),
                key=lambda timer: timer.when,
            )
            if not due:
                break
            self.timers.remove(due[0])
            self.now = max(self.now, due[0].when)
            due[0].callback()
            self.run()
        self.now = until
        self.run()


class FakeWorkers:
    """Workers. Jobs run at once, or, with ``held`` set, when ``release`` is called."""

    def __init__(self) -> None:
        self.held = False
        self.jobs: deque = deque()

    def submit(self, job) -> None:
        self.jobs.append(job)
        if not self.held:
            self.release()

    def release(self) -> None:
        while self.jobs:
            self.jobs.popleft()()
