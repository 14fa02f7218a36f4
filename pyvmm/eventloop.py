# SPDX-License-Identifier: Apache-2.0
"""The I/O thread: an epoll loop with timers, fed from other threads through one queue.

Each pass runs a bounded number of posted calls, so that no source starves another. A callback that
raises stops the loop and is reported through ``on_error``: threads do not die quietly.

epoll keys on the open file description, not on the descriptor. So a watch must be closed before its
descriptor is: a description that lives on elsewhere (an inherited terminal) would go on reporting
events for a number that means something else by then.
"""

from __future__ import annotations

import os
import select
import threading
import time

from pyvmm.lean import deque, heapify, heappop, heappush
from pyvmm.threads import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Cancellable(Protocol):
        """A pending call."""

        def cancel(self) -> None: ...

    class Scheduler(Protocol):
        """An event loop, or the gate before it."""

        def call_later(self, seconds: float, callback: Callable[[], None]) -> Cancellable: ...


_CALLS_PER_PASS = 64
_CANCELLED_KEPT = 64


class Watch:
    """A watched descriptor. ``close`` before closing the descriptor. Callable from any thread.

    A callback that is under way on the loop's thread may still be while another thread closes the watch.
    """

    __slots__ = ("_loop", "callback", "fd")

    def __init__(self, loop: EventLoop, fd: int, callback: Callable[[int], None]) -> None:
        self._loop = loop
        self.fd = fd
        self.callback = callback

    def close(self) -> None:
        """Stop watching. Idempotent."""
        self._loop._forget(self)

    def modify(self, events: int) -> None:
        """Wait for ``events`` (EPOLL bits) from now on; 0 leaves only errors and hang-ups.

        Nothing happens once it is closed. Callable from any thread.
        """
        self._loop._modify(self, events)


class Timer:
    """A pending ``call_later``."""

    __slots__ = ("_timers", "callback", "when")

    def __init__(self, when: float, callback: Callable[[], None], timers: _Timers) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback
        self._timers = timers

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when

    def cancel(self) -> None:
        """Do not run it. Harmless when it has run. Callable from any thread."""
        self._timers.cancel(self)

    def _take(self) -> Callable[[], None] | None:
        callback, self.callback = self.callback, None
        return callback


class _Timers:
    """Pending timers, earliest first. Callable from any thread.

    A cancelled timer stays in the heap until its time has come, unless they become the majority: a guest that
    sets and unsets a far alarm for ever must not fill the host's memory.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heap: list[Timer] = []
        self._cancelled = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, timer: Timer) -> bool:
        """Whether it is the earliest now."""
        with self._lock:
            heappush(self._heap, timer)
            return self._heap[0] is timer

    def cancel(self, timer: Timer) -> None:
        with self._lock:
            if timer.callback is None:
                return
            timer.callback = None
            self._cancelled += 1
            if self._cancelled > _CANCELLED_KEPT and self._cancelled * 2 > len(self._heap):
                self._heap = [timer for timer in self._heap if timer.callback is not None]
                heapify(self._heap)
                self._cancelled = 0

    def next(self) -> float | None:
        """When the earliest one is due, on the monotonic clock."""
        with self._lock:
            return self._heap[0].when if self._heap else None

    def take_due(self, now: float) -> Callable[[], None] | None:
        """The callback of one timer whose time has come by ``now``, or None when there is none."""
        with self._lock:
            while self._heap and self._heap[0].when <= now:
                callback = heappop(self._heap)._take()
                if callback is not None:
                    return callback
                self._cancelled -= 1
        return None


class EventLoop:
    """Callbacks run on the loop thread only, with no lock held."""

    def __init__(self, on_error: Callable[[BaseException], None]) -> None:
        self._on_error = on_error
        self._epoll = select.epoll()
        self._watches: dict[int, Watch] = {}
        self._watch_lock = threading.Lock()
        # deque.append and popleft are atomic: the only thing here that relies on the interpreter for that.
        self._calls: deque[Callable[[], None]] = deque()
        self._timers = _Timers()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        # Between those who call and the end, after which the descriptor may be somebody else's. Reentrant: a
        # signal handler calls, too.
        self._calling = threading.RLock()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def watch(self, fd: int, callback: Callable[[int], None], events: int = select.EPOLLIN) -> Watch:
        """Call ``callback(events)`` whenever ``fd`` has any of ``events``.

        Raises PermissionError for a descriptor that is always ready (a regular file). Callable from any
        thread.
        """
        watch = Watch(self, fd, callback)
        with self._watch_lock:
            self._epoll.register(fd, events)
            self._watches[fd] = watch
        return watch

    def _forget(self, watch: Watch) -> None:
        with self._watch_lock:
            if self._watches.get(watch.fd) is watch:
                del self._watches[watch.fd]
                self._epoll.unregister(watch.fd)

    def _modify(self, watch: Watch, events: int) -> None:
        with self._watch_lock:
            if self._watches.get(watch.fd) is watch:
                self._epoll.modify(watch.fd, events)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` on the loop thread; not at all once that ends. Callable from any thread."""
        self._calls.append(callback)
        self._wake()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Run ``callback`` on the loop thread after ``seconds``, see ``call_soon``."""
        timer = Timer(time.monotonic() + seconds, callback, self._timers)
        if self._timers.add(timer):
            self._wake()
        return timer

    def _wake(self) -> None:
        with self._calling:
            if not self._stopping:
                os.eventfd_write(self._wake_fd, 1)

    def start(self) -> None:
        """Run the loop on a thread of its own."""
        self._thread = start_thread(self._run, "io")

    def stop(self) -> None:
        """End the loop and join its thread. Callable from any thread but the loop's own."""
        with self._calling:
            self._stopping = True
            os.eventfd_write(self._wake_fd, 1)
        if self._thread is not None:
            self._thread.join()
        self._epoll.close()
        os.close(self._wake_fd)

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._pass()
        except BaseException as error:
            self._on_error(error)

    def _pass(self) -> None:
        for fd, events in self._epoll.poll(self._timeout()):
            if fd == self._wake_fd:
                os.eventfd_read(fd)
            elif watch := self._watches.get(fd):  # an earlier callback of this pass may have closed it
                watch.callback(events)
        now = time.monotonic()
        while callback := self._timers.take_due(now):
            callback()
        for _ in range(min(len(self._calls), _CALLS_PER_PASS)):
            self._calls.popleft()()

    def _timeout(self) -> float:
        if self._calls:
            return 0
        when = self._timers.next()
        return -1 if when is None else max(0.0, when - time.monotonic())


class LoopClock:
    """Wall-clock time and alarms for devices, on an event loop (protocol ``devices.base.Clock``)."""

    __slots__ = ("_loop",)

    def __init__(self, loop: Scheduler) -> None:
        self._loop = loop

    def now_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""
        return time.time_ns()

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> Cancellable:
        """Run ``callback`` on the loop thread once ``now_ns()`` reaches ``when_ns``."""
        return self._loop.call_later(max(0, when_ns - time.time_ns()) / 1e9, callback)
