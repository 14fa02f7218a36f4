# SPDX-License-Identifier: Apache-2.0
"""``pyvmm run``: boot a guest with its console on this terminal."""

from __future__ import annotations

import os
import signal

from pyvmm import hostfile, outcome, terminal
from pyvmm.cli.options import MACHINE_OPTIONS, PREFIXES, REFUSED, RUN_OPTIONS
from pyvmm.cli.parser import Command, Option
from pyvmm.cli.say import say, show
from pyvmm.config import MachineConfig
from pyvmm.outcome import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.machine import Machine

_HOSTS = ("auto", "local", "lab", "lab:aia", "lab:plic")

COMMAND = Command(
    "run",
    "Boot a guest, with its console on this terminal. Ctrl-A ? lists the escape keys.",
    (
        *MACHINE_OPTIONS,
        *RUN_OPTIONS,
        Option(
            "--host",
            key="host",
            choices=_HOSTS,
            metavar="WHERE",
            group="Meta",
            help="where the guest runs [auto]",
        ),
        Option("-v", "--verbose", key="verbose", group="Meta", help="say more about what pyvmm chooses"),
        Option("-q", "--quiet", key="quiet", group="Meta", help="say nothing but errors"),
    ),
    positional=("kernel", "KERNEL"),
    refused=REFUSED,
    prefixes=PREFIXES,
)


def main(words: list[str]) -> int:
    """Run the guest; the exit code says how it ended."""
    values = COMMAND.parse(words)
    where = values.pop("host", "auto")
    verbose = bool(values.pop("verbose", False))
    quiet = bool(values.pop("quiet", False))
    if not values.get("kernel") and not values.get("firmware"):
        words = [*words, *_debian_guest(values, quiet)]
    config = MachineConfig(**values)  # type: ignore[arg-type]  # checked field by field there
    if where == "local" or (where == "auto" and os.uname().machine == "riscv64"):
        return _run_here(config, verbose=verbose, quiet=quiet)
    from pyvmm.cli.in_lab import run_in_lab

    return run_in_lab(words, config, str(where), quiet=quiet)


def _debian_guest(values: dict[str, object], quiet: bool) -> list[str]:
    """No kernel was named: take Debian's, and a busybox initramfs unless there is an --initrd."""
    from pyvmm.lab import guests

    if not quiet:
        say("no kernel given: booting Debian's, to a busybox shell")
    values["kernel"] = str(guests.kernel())
    added = [f"--kernel={values['kernel']}"]
    if "initrd" not in values:
        values["initrd"] = str(guests.initrd())
        added.append(f"--initrd={values['initrd']}")
    return added


def _run_here(config: MachineConfig, *, verbose: bool, quiet: bool) -> int:
    from pyvmm.machine import Machine

    interactive = os.isatty(0)
    trace_file = _TraceFile(config.trace_out)
    note = say if verbose else _nowhere
    show_trace = trace_file.show if config.trace_out else show
    with Machine(config, input_fd=0, output_fd=1, note=note, show=show_trace) as machine:
        if interactive:
            machine.on_input = _Keys(machine).filter
        board = machine.prepare()
        trace_file.open()
        if not quiet:
            hint = " (Ctrl-A ? for help)" if interactive else ""
            say(f"{config.summary()}, irqchip {board.chip.name}{hint}")
        if interactive:
            with terminal.RawTerminal(0):
                end = _run(machine)
                machine.close()
        else:
            end = _run(machine)
    trace_file.close()
    return _report(end, machine, quiet=quiet)


def _nowhere(_text: str) -> None:
    """Nobody wants to know."""


class _TraceFile:
    """``--trace-out``: the trace, a line at a time, in a file."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._fd = -1

    def open(self) -> None:
        """Begin it, now that the machine can be built. Raises ConfigError."""
        if self._path is not None:
            self._fd = hostfile.create("The trace", self._path)

    def show(self, line: str) -> None:
        """One write a line, so that lines of several vCPUs do not mix."""
        os.write(self._fd, f"{line}\n".encode())

    def close(self) -> None:
        """End it."""
        if self._fd >= 0:
            os.close(self._fd)


def _run(machine: Machine) -> Outcome:
    def on_signal(number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        machine.end(Outcome(outcome.SIGNAL, f"ended by {name}", signal=number))

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, on_signal)
    machine.start()
    return machine.wait()


def _report(end: Outcome, machine: Machine, *, quiet: bool) -> int:
    if end.error is not None:
        raise end.error
    if machine.trace is not None:
        show("\n".join(machine.trace.summary()))
    if end.detail:
        show(end.detail)
    if not quiet or end.exit_code:
        say(end.message)
    return end.exit_code


class _Keys:
    """The escape keys of an interactive console."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._keys = terminal.EscapeKeys()

    def filter(self, data: bytes) -> bytes:
        """What of ``data`` is meant for the guest; obeys the rest."""
        typed, commands = self._keys.feed(data)
        for command in commands:
            self._obey(command)
        return typed

    def _obey(self, command: str) -> None:
        if command == terminal.QUIT:
            self._machine.end(Outcome(outcome.QUIT, "ended by Ctrl-A x"))
        elif command == terminal.HELP:
            show(terminal.HELP_TEXT)
        elif command == terminal.BREAK:
            self._machine.send_break()
        elif command == terminal.TRACE:
            self._machine.toggle_trace()
