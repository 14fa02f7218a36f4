# SPDX-License-Identifier: Apache-2.0
"""Worker threads for host I/O that may block (protocol ``devices.base.Workers``).

Handing a job over costs some 50 microseconds and the way back as much again, fifty times what a read from
the page cache takes: hand over what may block, and do the rest where you are.
"""

from __future__ import annotations

import threading

from pyvmm.lean import SimpleQueue
from pyvmm.threads import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Job = Callable[[], None]


class WorkerThreads:
    """Up to ``limit`` threads, each started when a job finds all others busy.

    The limit is several times what one disk takes at most (``devices.disk.jobs``), so that a disk that
    hangs does not hold up the other devices. Threads that are not needed are never started.

    A job that raises is reported through ``on_error``; the thread goes on.
    """

    def __init__(self, on_error: Callable[[BaseException], None], limit: int = 16) -> None:
        self._on_error = on_error
        self._limit = limit
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._unfinished = 0
        self._held: list[Job] | None = None  # submitted since ``hold``
        self._lock = threading.Lock()  # a leaf: of the three above
        self._idle = threading.Condition(self._lock)

    def submit(self, job: Job) -> None:
        """Run ``job`` on one of the threads. Callable from any thread, until ``stop``."""
        with self._lock:
            if self._held is not None:
                self._held.append(job)
                return
            self._begin(job)

    def _begin(self, job: Job) -> None:
        self._unfinished += 1
        if len(self._threads) < min(self._unfinished, self._limit):
            self._threads.append(start_thread(self._main, f"work-{len(self._threads)}"))
        self._jobs.put(job)

    def hold(self) -> None:
        """Begin no job that is submitted from now on. Idempotent."""
        with self._lock:
            if self._held is None:
                self._held = []

    def idle(self, patience: float) -> bool:
        """Wait until every job that was begun is finished; whether they were within ``patience`` seconds."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._unfinished, patience)

    def release(self) -> None:
        """Begin what was held, and what comes. Idempotent."""
        with self._lock:
            held, self._held = self._held, None
            for job in held or ():
                self._begin(job)

    def stop(self) -> None:
        """Finish every job, and end the threads. Idempotent. Not from a worker."""
        self.release()
        with self._lock:
            threads, self._threads = self._threads, []
        for _ in threads:
            self._jobs.put(None)
        for thread in threads:
            thread.join()

    def _main(self) -> None:
        while self._work():
            pass

    def _work(self) -> bool:
        """One job; False when there will be none. It is a local here: an idle thread keeps no job alive.

        That matters because a job holds views of guest memory, which cannot be given back before they are.
        """
        job = self._jobs.get()
        if job is None:
            return False
        try:
            job()
        except BaseException as error:
            self._on_error(error)
        finally:
            with self._lock:
                self._unfinished -= 1
                if not self._unfinished:
                    self._idle.notify_all()
        return True
