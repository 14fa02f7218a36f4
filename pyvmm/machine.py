# SPDX-License-Identifier: Apache-2.0
"""A machine as its user sees it: prepared, started, waited for, ended.

Threads: the caller's runs ``prepare``, ``start``, ``wait`` and ``close``; each vCPU has one; ``io`` runs the
event loop; ``console`` writes output; a ``reboot`` thread exists while a guest's reboot replaces the board.
``end`` may be called from any of them, also from a signal handler.

Lock order, outermost first: machine state, device, interrupt controller. Nothing waits for another thread
while it holds a device's lock.
"""

from __future__ import annotations

import os
import select
import threading

from pyvmm import hostfile, outcome
from pyvmm.board import Board
from pyvmm.console import ConsoleInput, ConsoleWriter, PanicWatch
from pyvmm.eventloop import EventLoop
from pyvmm.outcome import Outcome
from pyvmm.threads import start_thread
from pyvmm.trace import Trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from pyvmm.config import MachineConfig
    from pyvmm.kvm.ioctl import Kernel

# When to look whether the guest can ever go on: seconds since the last look; the last interval repeats.
_HANG_CHECKS = (1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)


def _ignore(_text: str) -> None:
    """Nobody listens."""


class Machine:
    """One guest, from its first instruction to its end, reboots included.

    ``input_fd`` and ``output_fd`` carry the console; the machine does not close them. ``note`` receives
    remarks on what was chosen and why, ``show`` the lines of the trace; ``kernel`` is the seam at which tests
    put a fake KVM. Use it as a context manager, or call ``close``.
    """

    def __init__(
        self,
        config: MachineConfig,
        *,
        input_fd: int | None = None,
        output_fd: int | None = None,
        note: Callable[[str], None] = _ignore,
        show: Callable[[str], None] = _ignore,
        kernel: Kernel | None = None,
    ) -> None:
        self.config = config
        #: Sees console input first and returns what is meant for the guest.
        self.on_input: Callable[[bytes], bytes] = lambda data: data
        self.trace = Trace(config.trace, show) if config.trace else None
        self._show = show
        self._note = note
        self._kernel = kernel
        self._state = threading.RLock()
        self._ended = threading.Event()
        self._outcome: Outcome | None = None
        self._outcome_lock = threading.RLock()  # reentrant: a signal handler may interrupt ``end``
        self._panic = PanicWatch()
        self._log_fd: int | None = None
        self._output_fd = output_fd
        self._loop = EventLoop(self._fail)
        self._writer = ConsoleWriter(self._on_line)
        if output_fd is not None:
            self._writer.add_output(output_fd, self._on_output_closed)
        self._input: ConsoleInput | None = None
        if input_fd is not None:
            self._input = ConsoleInput(self._loop, input_fd, self._filter_input)
        self._board: Board | None = None
        self._closed = False

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def prepare(self) -> Board:
        """Build the board and load the guest; nothing runs yet.

        Raises ConfigError, HostError, KvmError or KvmUnavailable.
        """
        with self._state:
            if self._board is None:
                board = Board(self.config, self._loop, self._writer, self._note, self.trace, self._kernel)
                board.connect(self._input, self._guest_ended, self._fail)
                self._board = board
                self._open_log()
            return self._board

    def _open_log(self) -> None:
        """Last, so that a machine that cannot be built does not empty the log of one that could."""
        if self.config.log is not None and self._log_fd is None:
            self._log_fd = hostfile.create("The log", self.config.log)
            self._writer.add_output(self._log_fd, self._on_log_failed)

    def start(self) -> None:
        """Run the guest; prepares it first when that was not done. Raises what ``prepare`` raises."""
        board = self.prepare()
        if self._input is not None:
            self._input.start()
        self._watch_output()
        if self.config.timeout is not None:
            limit = Outcome(outcome.TIMEOUT, f"the guest did not end within {self.config.timeout:g} s")
            self._loop.call_later(self.config.timeout, lambda: self.end(limit))
        self._loop.start()
        board.start()
        self._check_later(0)

    def wait(self) -> Outcome:
        """Wait for the end and return it. Signal handlers run meanwhile when this is the main thread."""
        self._ended.wait()
        assert self._outcome is not None
        return self._outcome

    def end(self, end: Outcome) -> None:
        """End the run for this reason, unless it has ended already. Callable from any thread."""
        with self._outcome_lock:
            if self._outcome is None:
                self._outcome = end
                self._ended.set()

    def close(self) -> None:
        """Stop every thread and release everything. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.end(Outcome(outcome.QUIT, "the machine was closed"))
        self._writer.release()
        with self._state:
            board, self._board = self._board, None
            if board is not None:
                board.close()
        self._loop.stop()
        self._writer.close(flush=self.wait().reason not in (outcome.SIGNAL, outcome.OUTPUT_CLOSED))
        if self._log_fd is not None:
            os.close(self._log_fd)

    def send_break(self) -> None:
        """A BREAK on the serial console: the next key is a SysRq command."""
        with self._state:
            if self._board is not None:
                self._board.send_break()

    def toggle_trace(self) -> None:
        """Switch the trace off or on; the first time, start one of MMIO and SBI."""
        with self._state:
            if self.trace is not None:
                self.trace.enabled = not self.trace.enabled
            elif self._board is not None:
                self.trace = Trace(("mmio", "sbi"), self._show)
                self._board.trace_exits(self.trace)

    def _filter_input(self, data: bytes) -> bytes:
        return self.on_input(data)

    def _guest_ended(self, end: Outcome) -> None:
        """On the vCPU's thread, which must be free to finish."""
        if end.reason == outcome.REBOOT and self._panic.seen and self.config.on_panic == "exit":
            end = Outcome(outcome.PANIC, f"the guest panicked and rebooted: {self._panic.message}")
        if end.reason == outcome.REBOOT and self.config.on_reboot == "reboot":
            start_thread(self._reboot, "reboot")
        else:
            self.end(end)

    def _reboot(self) -> None:
        try:
            with self._state:
                if self._board is None or self._ended.is_set():
                    return
                self._note("the guest reboots")
                self._board.close()
                self._board = None
                self._panic = PanicWatch()
                self.prepare().start()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """A thread of ours met an exception: the run is over, and whoever waits gets to see it."""
        self.end(Outcome(outcome.FAILED, str(error) or type(error).__name__, error=error))

    def _on_line(self, line: bytes) -> None:
        self._panic.feed(line)
        if self._panic.ended and self.config.on_panic == "exit":
            self.end(Outcome(outcome.PANIC, f"the guest panicked: {self._panic.message}"))

    def _on_log_failed(self, error: OSError) -> None:
        self._note(f"the log {self.config.log} ends here: {error.strerror}")

    def _on_output_closed(self, _error: OSError | None = None) -> None:
        self.end(Outcome(outcome.OUTPUT_CLOSED, "whoever read the console's output has gone"))

    def _watch_output(self) -> None:
        """Notice at once when a pipe on the output loses its reader, not only at the next byte."""
        if self._output_fd is None or self._output_fd == 0:
            return
        try:
            self._loop.watch(self._output_fd, self._output_event, 0)
        except (PermissionError, FileExistsError):
            pass  # a file has no reader; a terminal that is also the input is watched there

    def _output_event(self, events: int) -> None:
        if events & (select.EPOLLERR | select.EPOLLHUP):
            self._on_output_closed()

    def _check_later(self, number: int) -> None:
        interval = _HANG_CHECKS[min(number, len(_HANG_CHECKS) - 1)]

        def check() -> None:
            board = self._board
            if board is not None:
                board.check_alive()
            self._check_later(number + 1)

        self._loop.call_later(interval, check)
