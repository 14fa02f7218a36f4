# SPDX-License-Identifier: Apache-2.0
"""Requests of one session on their way through the worker threads, several at a time, results in batches.

Handing one request at a time to a worker costs more than a small read. So a worker that is at it goes on
with what waits, and the loop's thread is told once of all that was finished meanwhile.

Between loop and workers there are two deques, whose appends and pops are atomic, and a flag. There is no
lock: a worker appends its result *before* it looks whether the loop has been told, and the loop clears that
flag *before* it empties the results.
"""

from __future__ import annotations

from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from pyvmm.devices.virtio.session import Session

    class Request(Protocol):
        """What goes through."""

        @property
        def stale(self) -> bool:
            """Its queue was reset: it must not be begun any more."""

        def perform(self) -> None:
            """Do the host I/O. On a worker; must not raise."""

        def finish(self) -> None:
            """Complete the chain. On the loop's thread, inside the session."""


# At a time: how deep a slow disk's queue gets. All devices of a machine share the workers, of whom one device
# must never have more than a few: the others' requests, and resets that wait for them, would wait for it.
_RUNNERS = 4
_BATCH = 16  # requests of one runner: it ends now and then, so that other devices' jobs get their turn


class JobQueue:
    """All methods but ``_run`` on the loop's thread or a vCPU's, with the device's lock held."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._waiting: deque[Request] = deque()
        self._finished: deque[Request] = deque()
        self._running = 0
        self._told = False
        self._closed = False

    def put(self, request: Request) -> None:
        """Add a request; ``start`` gets it going."""
        self._waiting.append(request)

    def start(self) -> None:
        """Let workers begin with what waits."""
        for _ in range(min(len(self._waiting), _RUNNERS - self._running)):
            self._running += 1
            self._session.submit(self._run, self._ended)

    def drop_stale(self) -> None:
        """Forget the requests of queues that were reset, as far as no worker has begun them."""
        for _ in range(len(self._waiting)):
            try:
                request = self._waiting.popleft()
            except IndexError:  # the workers were faster
                return
            if not request.stale:
                self._waiting.append(request)

    def close(self) -> None:
        """Forget every request. What a worker is at is forgotten when it ends."""
        self._closed = True
        self._waiting.clear()
        self._finished.clear()

    def _run(self) -> None:
        for _ in range(_BATCH):
            try:
                request = self._waiting.popleft()
            except IndexError:
                return
            request.perform()
            self._finished.append(request)
            if self._closed:
                self._finished.clear()
            elif self._waiting and not self._told:
                self._told = True
                self._session.post(self._collect)

    def _ended(self, _result: None) -> None:
        self._running -= 1
        self._collect()
        self.start()

    def _collect(self) -> None:
        self._told = False
        while self._finished:
            self._finished.popleft().finish()
