# SPDX-License-Identifier: Apache-2.0
"""A gate between devices and the event loop: shut, no callback of a device runs, and none is lost.

Devices are given the gate in the loop's place (protocol ``devices.base.Loop``); what is not the guest's
(keys, time limits) uses the loop itself. While the gate is shut, descriptors are not watched, posted calls
keep their places in the queue, and timers that come due wait. Events of descriptors cost nothing extra: what
the loop calls is the device's own callback.
"""

from __future__ import annotations

import errno
import select
import threading

from pyvmm.attempts import attempt_all
from pyvmm.lean import deque, partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.base import Loop
    from pyvmm.devices.base import Timer as LoopTimer
    from pyvmm.devices.base import Watch as LoopWatch


class GatedWatch:
    """A descriptor that is watched while the gate is open (protocol ``Watch``)."""

    __slots__ = ("_gate", "callback", "events", "fd", "real")

    def __init__(self, gate: Gate, fd: int, callback: Callable[[int], None], events: int) -> None:
        self._gate = gate
        self.fd = fd
        self.callback = callback
        self.events = events
        self.real: LoopWatch | None = None

    def close(self) -> None:
        """Stop watching. Idempotent; callable from any thread."""
        self._gate._forget(self)

    def modify(self, events: int) -> None:
        """Wait for ``events`` from now on. Callable from any thread."""
        self._gate._modify(self, events)


class GatedTimer:
    """A pending call that waits for the gate, too (protocol ``Timer``)."""

    __slots__ = ("_callback", "_gate", "real")

    def __init__(self, gate: Gate, callback: Callable[[], None]) -> None:
        self._gate = gate
        self._callback: Callable[[], None] | None = callback
        self.real: LoopTimer | None = None

    def cancel(self) -> None:
        """Do not run it. Harmless when it has run. Callable from any thread."""
        self._callback = None
        if self.real is not None:
            self.real.cancel()

    def _due(self) -> None:
        if self._gate._keep(self):
            return
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class Gate:
    """See the module. It is open at first. Every method may be called from any thread.

    Lock order: a device's, then the gate's, then the loop's.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._open = True
        self._watches: dict[int, GatedWatch] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._missed = 0  # turns of the loop that found the gate shut, and have to be asked for anew
        self._late: list[GatedTimer] = []

    def shut(self) -> None:
        """Begin no callback from now on. One that has begun goes on, see ``settled``. Idempotent."""
        with self._lock:
            if self._open:
                self._open = False
                for watch in self._watches.values():
                    _unwatch(watch)

    def settled(self) -> threading.Event:
        """Set once the callback that was running when the gate was shut is over."""
        passed = threading.Event()
        self._loop.call_soon(passed.set)
        return passed

    def open(self) -> None:
        """Let everything through that was kept, and all that comes. Idempotent.

        Raises what the host raised for a descriptor that it does not watch again; all else goes on.
        """
        with self._lock:
            if self._open:
                return
            self._open = True
            for _ in range(self._missed):
                self._loop.call_soon(self._next)
            self._missed = 0
            late, self._late = self._late, []
            for timer in late:
                self._loop.call_soon(timer._due)
            attempt_all(partial(self._watch, watch) for watch in self._watches.values())

    def _watch(self, watch: GatedWatch) -> None:
        watch.real = self._loop.watch(watch.fd, watch.callback, watch.events)

    # Protocol ``Loop``

    def watch(self, fd: int, callback: Callable[[int], None], events: int = select.EPOLLIN) -> GatedWatch:
        """See EventLoop.watch."""
        watch = GatedWatch(self, fd, callback, events)
        with self._lock:
            if self._open:
                self._watch(watch)
            else:
                self._check(fd)
            self._watches[fd] = watch
        return watch

    def call_soon(self, callback: Callable[[], None]) -> None:
        """See EventLoop.call_soon."""
        self._calls.append(callback)
        self._loop.call_soon(self._next)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> GatedTimer:
        """See EventLoop.call_later. Time goes on while the gate is shut."""
        timer = GatedTimer(self, callback)
        timer.real = self._loop.call_later(seconds, timer._due)
        return timer

    # For the above

    def _check(self, fd: int) -> None:
        """Raise what the loop's ``watch`` would: FileExistsError, PermissionError for a regular file."""
        if fd in self._watches:
            raise FileExistsError(errno.EEXIST, "the descriptor is watched already")
        with select.epoll() as epoll:
            epoll.register(fd, 0)

    def _next(self) -> None:
        with self._lock:
            if not self._open:
                self._missed += 1
                return
            callback = self._calls.popleft()
        callback()

    def _keep(self, timer: GatedTimer) -> bool:
        with self._lock:
            if not self._open:
                self._late.append(timer)
            return not self._open

    def _forget(self, watch: GatedWatch) -> None:
        with self._lock:
            if self._watches.get(watch.fd) is watch:
                del self._watches[watch.fd]
                _unwatch(watch)

    def _modify(self, watch: GatedWatch, events: int) -> None:
        with self._lock:
            watch.events = events
            if watch.real is not None:
                watch.real.modify(events)


def _unwatch(watch: GatedWatch) -> None:
    real, watch.real = watch.real, None
    if real is not None:
        real.close()
