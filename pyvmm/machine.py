# SPDX-License-Identifier: Apache-2.0
"""A machine as its user sees it: prepared, started, waited for, ended.

Threads: the caller's runs ``prepare``, ``start``, ``wait`` and ``close``; each vCPU has one; ``io`` runs the
event loop; ``console`` writes output; ``load`` puts the kernel into memory while a board is made; ``reboot``
exists while a guest's reboot replaces the board.
``end`` may be called from any of them, also from a signal handler. What can be asked of a guest that runs,
from any other thread, is in ``pyvmm.steering``.

Lock order, outermost first: steering, device, interrupt controller. The machine's own lock is a leaf but for
what a trace stops (the serial port's shortcut, direct answers). Nothing but steering waits for another thread
while it holds a lock.
"""

from __future__ import annotations

from pyvmm import configfiles, outcome
from pyvmm.attempts import attempt_all
from pyvmm.board import Board
from pyvmm.console.input import ConsoleInput
from pyvmm.console.output import ConsoleWriter
from pyvmm.console.outputends import OutputEnds
from pyvmm.console.panic import PanicWatch
from pyvmm.errors import MachineError
from pyvmm.lean import Empty, SimpleQueue, partial
from pyvmm.outcome import Outcome
from pyvmm.steering import Steering

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from pyvmm.config import MachineConfig
    from pyvmm.console.input import Item
    from pyvmm.kvm.ioctl import Kernel
    from pyvmm.trace import Trace

# When to look whether the guest can ever go on: seconds since the last look; the last interval repeats.
_HANG_CHECKS = (1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)


_NATURAL_ENDS = (outcome.POWEROFF, outcome.REBOOT, outcome.PANIC, outcome.HUNG)
# A signal that comes between Python's last look and the system call that blocks does not interrupt it: its
# handler runs when the call returns. So ``wait`` comes up for a moment every so many seconds.
_SIGNALS_LOST_FOR = 1.0
# Seconds in which a reader must take something, when the user or a limit ended the run.
_PATIENCE = 2.0
# Seconds of closing after which the user hears what is being waited for.
_SLOW_HOST = 10.0


def _ignore(_text: str) -> None:
    """Nobody listens."""


def _nothing() -> None:
    """Nobody wants to know when."""


def _pass_on(data: bytes) -> list[Item]:
    return [data]


class Machine(Steering):
    """One guest, from its first instruction to its end, reboots included.

    ``input_fd`` and ``output_fd`` carry the console; the machine does not close them. ``note`` receives
    remarks on what was chosen and why, ``warn`` what the user must know, ``show`` the lines of the trace;
    ``kernel`` is the seam at which tests put a fake KVM. Use it as a context manager, or call ``close``.
    """

    def __init__(
        self,
        config: MachineConfig,
        *,
        input_fd: int | None = None,
        output_fd: int | None = None,
        note: Callable[[str], None] = _ignore,
        warn: Callable[[str], None] = _ignore,
        show: Callable[[str], None] = _ignore,
        kernel: Kernel | None = None,
    ) -> None:
        super().__init__(self._fail)
        self.config = config
        #: Sees console input first and returns what is meant for the guest.
        self.on_input: Callable[[bytes], list[Item]] = _pass_on
        self._show = show
        self.trace = self._make_trace(config.trace) if config.trace else None
        self._note = note
        self._warn = warn
        self._kernel = kernel
        # Reentrant and atomic, unlike an Event: a signal handler may call ``end`` while this thread is in
        # ``wait`` or ``end`` itself. Something is in it once there is an outcome.
        self._ends: SimpleQueue[None] = SimpleQueue()
        self._end_told = False
        self._panic = PanicWatch()
        self._writer = ConsoleWriter(self._on_line, self._fail)
        self._output = OutputEnds(
            self._writer,
            output_fd,
            config.log,
            on_gone=self._output_closed,
            on_error=self._fail,
            warn=warn,
        )
        self._input = ConsoleInput(self._loop, input_fd, self._filter_input)
        self._size: tuple[int, int] | None = None

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def state(self) -> str:
        """``prepared``, ``running``, ``panicked`` and kept so, ``paused``, ``rebooting`` or ``ended``."""
        state = super().state
        return "panicked" if state == "running" and self._panic.ended else state

    def prepare(self) -> Board:
        """Build the board and load the guest; nothing runs yet.

        Raises ConfigError, HostError, KvmError or KvmUnavailable.
        """
        if self._board is None:
            configfiles.check(self.config)
            self._board = self._make_board()
            # Last, so that a machine that cannot be built does not empty the log of one that could.
            self._output.open_log()
        return self._board

    def _make_board(self) -> Board:
        board = Board(
            self.config, self._gate, self._workers, self._writer, self._note, self.trace, self._kernel
        )
        if self._size is not None:
            board.resize(*self._size)
        board.connect(self._input, partial(self._guest_ended, board), self._fail)
        return board

    def start(self) -> None:
        """Run the guest; prepares it first when that was not done. Raises what ``prepare`` raises."""
        board = self.prepare()
        self._input.start()
        self._loop.call_soon(partial(self._output.watch, self._loop))
        if self.config.timeout is not None:
            limit = Outcome(outcome.TIMEOUT, f"the guest did not end within {self.config.timeout:g} s")
            self._loop.call_later(self.config.timeout, lambda: self.end(limit))
        self._loop.start()
        self._events.begin()
        with self._state:  # the first hart may ask for a reboot before the last one was started
            self._started = True
            board.start()
        self._check_later(0)

    def wait(self) -> Outcome:
        """Wait for the end and return it. Signal handlers run meanwhile when this is the main thread."""
        while not self._outcomes:
            try:
                self._ends.get(timeout=_SIGNALS_LOST_FOR)
            except Empty:
                continue
            self._ends.put(None)  # for whoever else waits
        return self._outcomes[0]

    def end(self, end: Outcome) -> None:
        """End the run for this reason; the first one counts. From any thread and from signal handlers."""
        self._outcomes.append(end)
        self._ends.put(None)
        if not self._closed:
            self._loop.call_soon(self._tell_end)

    def _tell_end(self) -> None:
        """On the loop's thread, or once that has ended."""
        if not self._end_told:
            self._end_told = True
            end = self.wait()
            self._events.emit("ended", reason=end.reason, exit_code=end.exit_code, message=end.message)

    def close(self) -> None:
        """Stop every thread and release everything. Idempotent."""
        self.end(Outcome(outcome.QUIT, "the machine was closed"))
        with self._state:
            if self._closed:
                return
            self._closed = True
            board, self._board = self._board, None
        self._writer.release()
        if self._rebooting is not None:
            self._rebooting.join()
        slow = self._loop.call_later(
            _SLOW_HOST, lambda: self._warn("waiting for the host to finish what the guest's devices began")
        )
        try:
            with self._steering:
                attempt_all((self._let_go, *(() if board is None else (board.close,))))
        finally:
            slow.cancel()
            self._workers.stop()
            self._loop.stop()
            self._tell_end()
            self._close_output()

    def _close_output(self) -> None:
        """Write out what the guest printed; when it was ended by force, the reader has some seconds."""
        reason = self.wait().reason
        if reason in _NATURAL_ENDS:
            self._output.close(None)
        else:
            self._output.close(0 if reason == outcome.OUTPUT_CLOSED else _PATIENCE)

    def resize(self, columns: int, rows: int) -> None:
        """The console's terminal has this size now. From any thread and from signal handlers."""
        self._size = (columns, rows)
        self._loop.call_soon(self._resize)

    def _resize(self) -> None:
        board = self._board
        if board is not None and self._size is not None:
            board.resize(*self._size)

    def send_break(self) -> None:
        """A BREAK on the serial console, after the input so far: the next key is a SysRq command."""
        self._input.insert(self.break_item)

    def sysrq(self, key: str, taken: Callable[[], None] = _nothing) -> None:
        """Have the guest's kernel obey a SysRq key, typed into its console. From any thread.

        ``taken`` is called, on the loop's thread, once the guest's device has it. Raises MachineError when
        there is no console that knows a BREAK, or the guest has ended.
        """
        if self.config.console not in ("virtio", "serial"):
            raise MachineError(
                "SysRq comes through the console; start the guest with --console virtio or serial."
            )
        self._on_board(lambda _board: self._input.type(key.encode(), taken, self.break_item))

    def send_input(self, data: bytes, taken: Callable[[], None] = _nothing) -> None:
        """Type ``data`` into the console, after the input so far.

        ``taken`` is called, on the loop's thread, once the guest's device has all of it. From any thread.
        """
        self._input.type(data, taken)

    def observe_console(self, callback: Callable[[bytes], None]) -> Callable[[], None]:
        """Show ``callback`` the newest console output, at once, and then all that follows, as it comes.

        It is called on whatever thread writes, and must neither wait nor call back. Returns what ends it.
        From any thread.
        """
        return self._writer.observe(callback)

    def break_item(self) -> bool:
        """A BREAK as an item of console input."""
        board = self._board
        return board is None or board.send_break()

    def toggle_trace(self) -> None:
        """Switch the trace off or on; the first time, start one of MMIO and SBI."""
        with self._state:  # a board that is being started is told before or after
            board, trace = self._board, self.trace
            if trace is not None:
                trace.enabled = not trace.enabled
            elif board is not None:
                trace = self.trace = self._make_trace(("mmio", "sbi"))
            if board is not None and trace is not None:
                board.trace_exits(trace)

    def _make_trace(self, kinds: tuple[str, ...]) -> Trace:
        from pyvmm.trace import Trace

        return Trace(kinds, self._show, self._events.uptime)

    def mark_trace(self, text: str) -> None:
        """Write a line with ``text`` into the trace, after all that was traced so far. From any thread.

        Raises MachineError when the guest is not traced, or has ended.
        """
        if self._has_ended():
            raise MachineError("The guest has ended.")
        if self.trace is None:
            raise MachineError("The guest is not traced; start it with --trace.")
        self.trace.mark(text)

    def _filter_input(self, data: bytes) -> list[Item]:
        return self.on_input(data)

    def _guest_ended(self, board: Board, end: Outcome) -> None:
        """On the vCPU's thread, which must be free to finish."""
        if end.reason == outcome.REBOOT and self._panic.seen and self.config.on_panic == "exit":
            end = Outcome(outcome.PANIC, f"the guest panicked and rebooted: {self._panic.message}")
        if end.reason != outcome.REBOOT or self.config.on_reboot != "reboot":
            self.end(end)
            return
        self._restart(board)

    def _reboot(self, old: Board) -> None:
        try:
            with self._steering:
                self._note("the guest reboots")
                self._events.emit("rebooting")
                attempt_all((self._let_go, old.close))
                self._panic = PanicWatch()
                new = self._make_board()
                with self._state:
                    wanted = not self._closed
                    if wanted:
                        self._board = new
                        new.start()
                if not wanted:
                    new.close()
                    return
            self._events.emit("rebooted")
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """A thread of ours met an exception: the run is over, and whoever waits gets to see it."""
        self.end(Outcome(outcome.FAILED, str(error) or type(error).__name__, error=error))

    def _on_line(self, line: bytes) -> None:
        before = self._panic.seen
        self._panic.feed(line)
        if self._panic.seen and not before:
            self._events.emit("panic", message=self._panic.message)
        if self._panic.ended and self.config.on_panic == "exit":
            self.end(Outcome(outcome.PANIC, f"the guest panicked: {self._panic.message}"))

    def _output_closed(self) -> None:
        self.end(Outcome(outcome.OUTPUT_CLOSED, "whoever read the console's output has gone"))

    def _check_later(self, number: int) -> None:
        interval = _HANG_CHECKS[min(number, len(_HANG_CHECKS) - 1)]

        def check() -> None:
            board = self._board
            if board is not None:
                board.check_alive()
            self._check_later(number + 1)

        self._loop.call_later(interval, check)
