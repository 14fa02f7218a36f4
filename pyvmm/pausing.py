# SPDX-License-Identifier: Apache-2.0
"""Pausing: vCPUs, devices and the guest's time stand still, and go on without having lost anything.

In this order, and back in reverse:

1. vCPUs are parked, with no exit left to complete. What they wait for in a handler (a device's reset waits
   for the host) can still finish.
2. The guest's time is noted. It is set back to that when the guest goes on.
3. Console input stays with the host.
4. The gate is shut: no callback of a device begins. Keys, time limits and control are not behind it.
5. Workers finish what they have begun, and begin nothing. Their results wait behind the gate.
6. Halves of devices outside of this process (vhost, virtiofsd) give their rings back.

Any step may meet a host that does not answer. Then the pause fails, and the guest goes on.
"""

from __future__ import annotations

import threading
import time

from pyvmm.attempts import attempt_all
from pyvmm.errors import MachineError
from pyvmm.lean import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.board import Board
    from pyvmm.gate import Gate
    from pyvmm.runner import VcpuThread
    from pyvmm.workers import WorkerThreads

#: Seconds that the vCPUs and the host have to come to rest.
LIMIT = 10.0
_SLICE = 0.05  # between looks whether the guest has ended meanwhile

_BUSY_CPUS = (
    "The guest was not paused: CPU {cpus} did not stop within {limit:g} s. "
    "Does somebody read the console's output?"
)
_BUSY_HOST = "The guest was not paused: the host did not finish its disk and file I/O within {limit:g} s."


class _Patience:
    """Waits for one thing after the other, all within the limit, unless the guest ends."""

    def __init__(self, ended: Callable[[], bool]) -> None:
        self._ended = ended
        self._deadline = time.monotonic() + LIMIT

    def wait(self, done: Callable[[float], bool], complaint: Callable[[], str]) -> None:
        """Call ``done(seconds)``, which waits so long, until it is true. Raises MachineError."""
        while not done(_SLICE):
            if self._ended():
                raise MachineError("The guest has ended.")
            if time.monotonic() > self._deadline:
                raise MachineError(complaint())


class Pausing:
    """Pauses boards, one at a time. The machine sees to it that one method is called after the other."""

    def __init__(self, gate: Gate, workers: WorkerThreads) -> None:
        self._gate = gate
        self._workers = workers
        self._time: int | None = None  # of the guest
        self._quiet = 0  # so many of the board's devices were told to be
        #: The board that is paused.
        self.board: Board | None = None

    def pause(self, board: Board, ended: Callable[[], bool]) -> None:
        """See the module; returns when everything stands still. Raises MachineError.

        ``ended`` says whether the guest has ended, which makes waiting for it vain.
        """
        patience = _Patience(ended)
        try:
            self._park(board.threads, patience)
            self._time = board.time
            board.listen(False)
            self._gate.shut()
            self._workers.hold()
            patience.wait(self._gate.settled().wait, partial(_BUSY_HOST.format, limit=LIMIT))
            patience.wait(self._workers.idle, partial(_BUSY_HOST.format, limit=LIMIT))
            for device in board.devices:
                self._quiet += 1
                device.quiesce()
        except BaseException:
            self._go_on(board)
            raise
        self.board = board

    def resume(self) -> None:
        """Let the paused board go on. Raises MachineError when a part of it does not."""
        board, self.board = self.board, None
        if board is not None:
            self._go_on(board)

    def let_go(self) -> None:
        """For the end of a board, paused or not: its devices may finish; its vCPUs stay as they are."""
        self.board = self._time = None
        self._quiet = 0
        self._workers.release()
        self._gate.open()

    def _park(self, threads: list[VcpuThread], patience: _Patience) -> None:
        news = threading.Semaphore(0)
        parked: set[VcpuThread] = set()

        def at_rest(thread: VcpuThread) -> None:
            parked.add(thread)
            news.release()

        def moving() -> list[VcpuThread]:
            return [thread for thread in threads if thread not in parked and thread.alive]

        def all_parked(seconds: float) -> bool:
            news.acquire(timeout=seconds)
            return not moving()

        def complaint() -> str:
            cpus = ", ".join(str(thread.vcpu.id) for thread in moving())
            return _BUSY_CPUS.format(cpus=cpus, limit=LIMIT)

        for thread in threads:
            thread.park(self, partial(at_rest, thread))
        patience.wait(all_parked, complaint)

    def _go_on(self, board: Board) -> None:
        """From wherever ``pause`` came to.

        What cannot go on keeps nothing else from it: a guest without one of its devices can still be shut
        down. Raises MachineError then.
        """
        quiet = board.devices[: self._quiet]  # the others may be at work, if a pause failed
        self._quiet = 0
        guest_time, self._time = self._time, None
        steps: tuple[Callable[[], object], ...] = (
            *(device.go_on for device in quiet),
            self._workers.release,
            self._gate.open,
            partial(board.listen, True),
            partial(_set_time, board, guest_time),
            *(partial(thread.unpark, self) for thread in board.threads),
        )
        try:
            attempt_all(steps)
        except Exception as error:
            raise MachineError(f"The guest goes on, but not all of it: {error}") from error


def _set_time(board: Board, guest_time: int | None) -> None:
    if guest_time is not None:
        board.time = guest_time
