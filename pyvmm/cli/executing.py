# SPDX-License-Identifier: Apache-2.0
"""The part of ``pyvmm exec`` that runs where the guest does: a machine, and a command in its guest.

The command's streams have a thread each; the main thread waits for its end, and takes signals. The console is
put aside, and its last lines are shown when the guest ends before the command.
"""

from __future__ import annotations

import os
import signal
import threading

from pyvmm import outcome
from pyvmm.cli import streams
from pyvmm.cli.say import say, show
from pyvmm.cli.traceout import TraceOutput
from pyvmm.control import Reach
from pyvmm.control.runfolder import AGENT_SOCKET
from pyvmm.guest.client import Guest
from pyvmm.guest.process import STDERR, STDOUT
from pyvmm.guest.protocol import GuestGone, GuestTimeout
from pyvmm.machine import Machine
from pyvmm.outcome import Outcome
from pyvmm.threads import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.config import MachineConfig
    from pyvmm.guest.process import Process

_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_TAIL = 20  # lines of the console
_LONG_BOOT = 120.0  # seconds until the user is told what may be wrong
_FAREWELL = 10.0  # seconds for the guest to power off
_LAST_WORD = 2.0  # seconds from the agent's end to the guest's, if that is why
_GLANCE = 0.2  # seconds after which a wait looks whether it was told to end


def execute(config: MachineConfig, name: str | None, command: list[str], *, verbose: bool) -> int:
    """Boot ``config``, run ``command``, end the guest; the exit code. Raises PyvmmError."""
    reach = Reach(name)
    try:
        config.serve_agent(reach.path(AGENT_SOCKET))
        return _execute(config, reach, command, verbose=verbose)
    finally:
        reach.close()


def _execute(config: MachineConfig, reach: Reach, command: list[str], *, verbose: bool) -> int:
    trace = TraceOutput(config.trace_out)
    note = say if verbose else _nowhere
    machine = Machine(config, note=note, warn=say, show=trace.show)
    with machine:
        board = machine.prepare()
        trace.open()
        note(f"{reach.name}: {config.summary()}, irqchip {board.chip.name}")
        with Guest.connect(reach.path(AGENT_SOCKET)) as guest:
            run = _Run(machine, guest)
            code = run.main(reach, command, new_root="root=" in config.params)
    trace.close()
    if machine.trace is not None:
        show("\n".join((*machine.trace.summary(), *trace.losses())))
    return code


def _nowhere(_text: str) -> None:
    """Nobody wants to know."""


class _Run:
    """One command in one guest."""

    def __init__(self, machine: Machine, guest: Guest) -> None:
        self._machine = machine
        self._guest = guest
        self._process: Process | None = None
        self._interrupted = False
        self._killed = False
        self._unwritten: Outcome | None = None  # how the run ends when output cannot be passed on
        self._over = threading.Event()

    def main(self, reach: Reach, command: list[str], *, new_root: bool) -> int:
        """From the guest's start to its end; the exit code."""
        unsubscribe = self._machine.subscribe(self._happened)
        # An ignored signal stays ignored: that is how nohup, and a shell's background jobs, ask for it.
        numbers = [number for number in _ENDING_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        for number in numbers:
            signal.signal(number, self._on_signal)
        try:
            self._machine.start()
            reach.open(self._machine)
            return self._converse(command, new_root)
        except GuestGone as error:
            return self._report(error)
        finally:
            unsubscribe()
            for number in numbers:
                signal.signal(number, signal.SIG_DFL)

    def _happened(self, event: dict[str, object]) -> None:
        if event["event"] == "ended":
            self._over.set()
            self._guest.abort(str(event["message"]))

    def _on_signal(self, number: int, _frame: object) -> None:
        """The first Ctrl-C is the command's; every other signal ends the guest."""
        if number == signal.SIGINT and self._process is not None and not self._interrupted:
            self._interrupted = True
            try:
                self._process.signal(number)
            except GuestGone:
                pass  # and so is the command
            return
        self._killed = True
        name = signal.Signals(number).name
        self._machine.end(Outcome(outcome.SIGNAL, f"ended by {name}", signal=number))

    def _wait_ready(self) -> None:
        try:
            self._guest.wait_ready(_LONG_BOOT)
        except GuestTimeout:
            say(
                "the guest does not answer yet. Its kernel needs virtio_console; Ctrl-C ends it and shows why"
            )
            self._guest.wait_ready()

    def _converse(self, command: list[str], new_root: bool) -> int:
        self._wait_ready()
        term = os.environ.get("TERM")
        env = {"TERM": term} if term else {}
        process = self._guest.start(command, env=env, new_root=new_root)
        self._process = process
        outputs = [
            start_thread(lambda: self._pass_out(process, STDOUT, 1), "stdout"),
            start_thread(lambda: self._pass_out(process, STDERR, 2), "stderr"),
        ]
        start_thread(lambda: _pass_in(process), "stdin")
        status = process.wait()
        if (end := self._pass_on(outputs)) is not None:
            if end.error is not None:
                raise end.error
            if end.reason != outcome.OUTPUT_CLOSED:  # that as quietly as any program that nobody listens to
                say(end.message)
            return end.exit_code
        if process.failure:
            say(process.failure)
        try:
            self._guest.power_off()
        except GuestGone:
            pass  # it did not wait for that
        self._over.wait(_FAREWELL)
        return status

    def _pass_on(self, outputs: list[threading.Thread]) -> Outcome | None:
        """Wait until all of the command's output was passed on; how that ended before, if it did."""
        for thread in outputs:
            while thread.is_alive() and not self._killed:
                thread.join(_GLANCE)
        return self._machine.wait() if self._killed else self._unwritten

    def _pass_out(self, process: Process, output: int, fd: int) -> None:
        try:
            while data := process.read(output):
                streams.write_all(fd, data)
        except GuestGone:
            pass  # the main thread hears of it, too
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                end = Outcome(outcome.OUTPUT_CLOSED, "whoever read the command's output has gone")
            else:
                end = Outcome(outcome.FAILED, str(error), error=error)
            self._unwritten = end
            self._machine.end(end)

    def _report(self, error: GuestGone) -> int:
        """The guest ended before the command did, or the agent in it."""
        if not self._over.wait(_LAST_WORD):
            self._show_console()
            say(str(error))
            return outcome.EXIT_USAGE
        end = self._machine.wait()
        if end.error is not None:
            raise end.error
        if end.reason == outcome.OUTPUT_CLOSED:
            return end.exit_code  # as quietly as any program that nobody listens to
        if end.reason != outcome.SIGNAL or self._process is None:
            self._show_console()
        if end.detail:
            show(end.detail)
        say(f"{end.message}, and the command had not ended")
        return end.exit_code or outcome.EXIT_USAGE

    def _show_console(self) -> None:
        kept = bytearray()
        self._machine.observe_console(kept.extend)()
        lines = bytes(kept).decode(errors="replace").splitlines()[-_TAIL:]
        if lines:
            say("the last lines of the guest's console:")
            show("\n".join("".join(letter for letter in line if letter.isprintable()) for line in lines))


def _pass_in(process: Process) -> None:
    try:
        while data := streams.read_some(0):
            process.write(data)
    except GuestGone:
        return
    except OSError:
        pass  # a terminal that hung up: nothing more will come
    try:
        process.close_input()
    except GuestGone:
        pass
