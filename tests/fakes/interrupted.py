# SPDX-License-Identifier: Apache-2.0
"""``python -m fakes.interrupted ROUNDS``: machines are ended and waited for while signals come in.

First a signal at every line of Python that ``end`` and ``wait`` execute, in any module; then one in the
moment before ``wait`` blocks, when no handler of Python's can run any more; then ROUNDS times a signal from
another thread, at whatever moment it hits. A deadlock, or a signal that is lost, hangs the process.
"""

from __future__ import annotations

import ctypes
import operator
import signal
import sys
import threading
from functools import partial
from types import FrameType
from typing import Any

from pyvmm import outcome
from pyvmm.config import MachineConfig
from pyvmm.machine import Machine
from pyvmm.outcome import Outcome
from pyvmm.threads import start_thread

SIGNALLED = Outcome(outcome.SIGNAL, "ended by SIGTERM", signal=signal.SIGTERM)


def at_every_line(frame: FrameType, event: str, argument: object) -> Any:
    """A trace function: Python runs the signal's handler before it returns."""
    signal.raise_signal(signal.SIGTERM)
    return at_every_line


class LateSignal:
    """A queue to which a signal comes when its ``get`` is about to block.

    No bytecode is run between the two: Python's own handler in C has noted the signal, and that is all.
    """

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self.put = queue.put
        self._late = [partial(ctypes.PyDLL(None)["raise"], signal.SIGTERM)]

    def get(self, **options: Any) -> Any:
        late, self._late = self._late, []
        return list(map(operator.call, (*late, partial(self._queue.get, **options))))[-1]


def main(rounds: int) -> None:
    machine = Machine(MachineConfig(kernel="none"))
    signal.signal(signal.SIGTERM, lambda number, frame: machine.end(SIGNALLED))
    for function in (machine.wait, lambda: machine.end(SIGNALLED), machine.wait):
        sys.settrace(at_every_line)
        function()
        sys.settrace(None)
    machine.close()
    machine = Machine(MachineConfig(kernel="none"))
    machine._ends = LateSignal(machine._ends)  # type: ignore[assignment]
    assert machine.wait() is SIGNALLED
    machine.close()
    for _ in range(rounds):
        machine = Machine(MachineConfig(kernel="none"))
        thread = start_thread(
            lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM), "sender"
        )
        assert machine.wait() is SIGNALLED
        thread.join()
        machine.close()
    print("no deadlock")


if __name__ == "__main__":
    main(int(sys.argv[1]))
