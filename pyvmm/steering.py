# SPDX-License-Identifier: Apache-2.0
"""What can be asked of a machine while its guest runs: the part of ``Machine`` beside its start and its end.

All of it may be called from any thread that is neither a vCPU's nor the loop's, waits where it has to, and
raises MachineError with a sentence when the guest cannot do it, or has ended.
"""

from __future__ import annotations

import threading
import time

from pyvmm.errors import MachineError
from pyvmm.eventloop import EventLoop
from pyvmm.gate import Gate
from pyvmm.guestevents import Events
from pyvmm.lean import deque
from pyvmm.threads import start_thread
from pyvmm.workers import WorkerThreads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from pyvmm.board import Board
    from pyvmm.guestevents import Listener
    from pyvmm.outcome import Outcome
    from pyvmm.pausing import Pausing

    T = TypeVar("T")

#: Seconds to wait for what somebody else asked of the guest, or for a restart that is under way.
PATIENCE = 20.0
#: Seconds in which a reset must be done.
RESET_LIMIT = 100.0

_ENDED = "The guest has ended."
_RESTARTING = "The guest is being restarted, which takes long. Does somebody read the console's output?"
_BUSY = "The guest is still busy with another request; try again."


class Steering:
    """Base of ``Machine``, which it shares the board with.

    Lock order: ``_steering``, then ``_state``. The first is held for whole operations, so that one comes
    after the other and the board stays meanwhile; the second only to look, or to change the board
    or what is traced of it.
    """

    def __init__(self, on_error: Callable[[BaseException], None]) -> None:
        self._loop = EventLoop(on_error)
        self._workers = WorkerThreads(on_error)
        #: What devices are given instead of the loop.
        self._gate = Gate(self._loop)
        self._events = Events()
        self._pausing: Pausing | None = None  # from the first pause on
        self._steering = threading.Lock()
        #: Guards the board's change at a reboot and at the end; never held while waiting for a thread.
        self._state = threading.Lock()
        self._board: Board | None = None
        self._rebooting: threading.Thread | None = None
        self._started = False
        self._closed = False
        self._outcomes: deque[Outcome] = deque()  # of which the first counts

    @property
    def state(self) -> str:
        """``prepared`` (before ``start``), ``running``, ``paused``, ``rebooting`` or ``ended``."""
        with self._state:
            if self._has_ended():
                return "ended"
            if not self._started:
                return "prepared"
            if self._board is None:
                return "rebooting"
            pausing = self._pausing
            return "paused" if pausing is not None and pausing.board is self._board else "running"

    @property
    def paused(self) -> bool:
        """Whether the guest is paused."""
        return self.state == "paused"

    @property
    def uptime(self) -> float:
        """Seconds since the guest was first started, pauses and reboots included; 0 before."""
        return self._events.uptime()

    @property
    def started_at(self) -> float | None:
        """When the guest was first started, in seconds since the Unix epoch; None before."""
        return self._events.started_at

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` with what happens from now on, see ``pyvmm.guestevents``; on whatever thread.

        It must not wait. Returns what ends it.
        """
        return self._events.subscribe(listener)

    # Pausing and restarting

    def pause(self) -> None:
        """Stop vCPUs, device work and the guest's time; returns when all of it stands still. Idempotent.

        Keys, time limits and everything here go on. During a reboot it waits for the new guest, and pauses
        that. When the host does not come to rest within ``pausing.LIMIT`` seconds the guest goes on.
        """
        while not self._on_board(self._pause):
            pass

    def _pause(self, board: Board) -> bool:
        from pyvmm.pausing import Pausing

        pausing = self._pausing
        if pausing is None:
            pausing = self._pausing = Pausing(self._gate, self._workers)
        if pausing.board is None:
            pausing.pause(board, self._has_ended)
            if self._has_ended():
                raise MachineError(_ENDED)
            if self._board is not board:  # it asked for a reboot just before
                pausing.let_go()
                return False
            self._events.emit("paused")
        return True

    def resume(self) -> None:
        """End a pause. Idempotent.

        Raises MachineError when a part of the guest does not go on; the rest does.
        """
        self._on_board(self._resume)

    def _resume(self, _board: Board) -> None:
        pausing = self._pausing
        if pausing is not None and pausing.board is not None:
            try:
                pausing.resume()
            finally:
                self._events.emit("resumed")

    def reset(self) -> None:
        """Restart the guest, as with a reset button: whatever state it is in, and even if it is paused.

        It runs again, from its first instruction, when this returns.
        """
        self._on_board(self._restart)
        rebooting = self._rebooting
        if rebooting is not None:
            _join(rebooting, RESET_LIMIT)
        if self._has_ended():
            raise MachineError(_ENDED)

    def _restart(self, board: Board) -> None:
        """Have ``board`` replaced on another thread; not when it is on its way out already."""
        with self._state:
            if self._board is board:
                self._board = None
                self._rebooting = start_thread(lambda: self._reboot(board), "reboot")

    def _reboot(self, old: Board) -> None:
        raise NotImplementedError

    def power_button(self) -> None:
        """Press the guest's power key: its operating system is asked to power off."""
        self._on_board(lambda board: board.power_button())

    # Looking and touching

    def inspect(self) -> dict[str, object]:
        """The machine as plain data: ``state``, ``uptime``, and what ``pyvmm.inspection`` finds."""
        from pyvmm import inspection

        found = self._on_board(inspection.report)
        return {"state": self.state, "uptime": round(self.uptime, 3), **found}

    def registers(self, cpu: int = 0) -> dict[str, int]:
        """pc, integer registers and trap CSRs of a CPU, by name."""
        from pyvmm import frontpanel

        return self._on_board(lambda board: frontpanel.registers(board, cpu, self._has_ended))

    def read_memory(self, address: int, length: int) -> bytes:
        """``length`` bytes of the guest's memory, by guest-physical address."""
        from pyvmm import frontpanel

        return self._on_board(lambda board: frontpanel.read_memory(board, address, length))

    def balloon(self) -> dict[str, object]:
        """Bytes ``wanted`` from the guest, and given by it (``actual``); ``statistics`` of its memory."""
        from pyvmm import frontpanel

        answer = self._on_board(frontpanel.ask_balloon)
        return answer()  # a guest that keeps silent holds up nobody else

    def set_balloon(self, size: int) -> None:
        """Ask the guest to do without ``size`` bytes of its memory; 0 gives all back."""
        from pyvmm import frontpanel

        self._on_board(lambda board: frontpanel.set_balloon(board, size))

    # For the machine

    def _let_go(self) -> None:
        """For the end of a board; see Pausing."""
        if self._pausing is not None:
            self._pausing.let_go()

    def _has_ended(self) -> bool:
        return self._closed or bool(self._outcomes)

    def _on_board(self, act: Callable[[Board], T]) -> T:
        """What ``act`` returns, which is given the board that runs. Waits for the end of a reboot."""
        deadline = time.monotonic() + PATIENCE
        while True:
            if not self._steering.acquire(timeout=_left(deadline)):
                raise MachineError(_RESTARTING if self.state == "rebooting" else _BUSY)
            try:
                with self._state:
                    board, rebooting = self._board, self._rebooting
                if self._has_ended():
                    raise MachineError(_ENDED)
                if not self._started:
                    raise MachineError("The guest has not been started.")
                if board is not None:
                    return act(board)
            finally:
                self._steering.release()
            if rebooting is not None:
                _join(rebooting, _left(deadline))


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _join(rebooting: threading.Thread, seconds: float) -> None:
    rebooting.join(seconds)
    if rebooting.is_alive():
        raise MachineError(_RESTARTING)
