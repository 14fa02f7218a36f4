# SPDX-License-Identifier: Apache-2.0
"""``pyvmm run``: boot a guest with its console on this terminal."""

from __future__ import annotations

import gc
import os

from pyvmm import outcome
from pyvmm.cli.options import (
    CONFIG_OPTIONS,
    DRY_RUN,
    MACHINE_OPTIONS,
    NAME,
    PREFIXES,
    REFUSED,
    RUN_OPTIONS,
    resolved,
)
from pyvmm.cli.parser import Command, Option
from pyvmm.cli.say import say, show
from pyvmm.config import MachineConfig
from pyvmm.lean import signals
from pyvmm.outcome import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.cli.traceout import TraceOutput
    from pyvmm.control import Reach
    from pyvmm.machine import Machine
    from pyvmm.terminal import RawTerminal

_ENDING_SIGNALS: dict[int, str] = {
    signals.SIGTERM: "SIGTERM",
    signals.SIGHUP: "SIGHUP",
    signals.SIGINT: "SIGINT",
}
_HOSTS = ("auto", "local", "lab", "lab:aia", "lab:plic")

COMMAND = Command(
    "run",
    "Boot a guest, with its console on this terminal. Ctrl-A ? lists the escape keys.",
    (
        *MACHINE_OPTIONS,
        *RUN_OPTIONS,
        *CONFIG_OPTIONS,
        NAME,
        DRY_RUN,
        Option(
            "--host",
            key="host",
            choices=_HOSTS,
            metavar="WHERE",
            group="Meta",
            help="where the guest runs [auto]",
        ),
        Option("-v", "--verbose", key="verbose", group="Meta", help="say more about what pyvmm chooses"),
        Option("-q", "--quiet", key="quiet", group="Meta", help="say only what goes wrong"),
    ),
    positional=("kernel", "KERNEL"),
    refused=REFUSED,
    prefixes=PREFIXES,
)


def main(words: list[str]) -> int:
    """Run the guest; the exit code says how it ended."""
    values, source = resolved(COMMAND.parse(words))
    if "dry_run" in values:
        from pyvmm.cli.dryrun import dry_run

        return dry_run(values)
    where = values.pop("host", "auto")
    name = checked_name(values.pop("name", None))
    verbose = bool(values.pop("verbose", False))
    quiet = bool(values.pop("quiet", False))
    if source is not None and not quiet:
        say(f"with the options in {source}")
    if values.get("kernel") is None and values.get("firmware") is None:
        _add_debian_guest(values, quiet)
    config = MachineConfig(**values)  # type: ignore[arg-type]  # checked field by field there
    if where == "local" or (where == "auto" and os.uname().machine == "riscv64"):
        gc.disable()  # nothing that a start makes is garbage: looking for it takes a twentieth of it
        try:
            return _run_here(config, name, verbose=verbose, quiet=quiet)
        finally:
            gc.enable()
    from pyvmm.cli.in_lab import run_in_lab

    talk = {key: True for key, wanted in (("verbose", verbose), ("quiet", quiet)) if wanted}
    if name is not None:
        values["name"] = name
    words = COMMAND.words({**values, **talk, "host": "local", "no_config": True})
    return run_in_lab(["run", *words], config, str(where), quiet=quiet)


def checked_name(name: object) -> str | None:
    """The name that was asked for. Raises ConfigError for one that cannot be had anywhere."""
    if name is None:
        return None
    from pyvmm.control.runfolder import check_name

    return check_name(str(name))


def _add_debian_guest(values: dict[str, object], quiet: bool) -> None:
    """No kernel was named: take Debian's."""
    from pyvmm import preview
    from pyvmm.cli import debian
    from pyvmm.cli.in_lab import no_progress, progress

    preview.check_machine(MachineConfig(**values))  # type: ignore[arg-type]  # before anything is fetched
    if not quiet:
        say("no kernel given: booting Debian's, to a busybox shell")
    debian.add(values, no_progress if quiet else progress)


def _run_here(config: MachineConfig, name: str | None, *, verbose: bool, quiet: bool) -> int:
    if not os.isatty(0):
        return _run_named(config, name, None, verbose=verbose, quiet=quiet)
    from pyvmm.terminal import RawTerminal

    raw = RawTerminal(0)  # first: its guardian is a fork, cheap while there is nothing to copy
    try:
        return _run_named(config, name, raw, verbose=verbose, quiet=quiet)
    finally:
        raw.close()


def _run_named(
    config: MachineConfig, name: str | None, raw: RawTerminal | None, *, verbose: bool, quiet: bool
) -> int:
    from pyvmm.control import Reach
    from pyvmm.control.runfolder import AGENT_SOCKET

    reach = Reach(name)
    try:
        if config.agent:
            config.serve_agent(reach.path(AGENT_SOCKET))
        return _run_machine(config, reach, raw, verbose=verbose, quiet=quiet)
    finally:
        reach.close()


def _run_machine(
    config: MachineConfig, reach: Reach, raw: RawTerminal | None, *, verbose: bool, quiet: bool
) -> int:
    from pyvmm.cli.traceout import TraceOutput
    from pyvmm.machine import Machine

    trace = TraceOutput(config.trace_out)
    note = say if verbose else _nowhere
    machine = Machine(config, input_fd=0, output_fd=1, note=note, warn=say, show=trace.show)
    with machine:
        board = machine.prepare()
        trace.open()
        if not quiet:
            hint = " (Ctrl-A ? for help)" if raw else ""
            say(f"{reach.name}: {config.summary()}, irqchip {board.chip.name}{hint}")
        if raw is None:
            end = _run(machine, reach)
        else:
            from pyvmm.cli.keys import Keys

            machine.on_input = Keys(machine).filter
            _follow_size(machine)
            with raw:
                end = _run(machine, reach)
                machine.close()
    trace.close()
    return _report(end, machine, trace, quiet=quiet)


def _follow_size(machine: Machine) -> None:
    """Tell the guest how large the terminal is, now and whenever that changes."""

    def tell(*_: object) -> None:
        size = os.get_terminal_size(0)
        machine.resize(size.columns, size.lines)

    signals.signal(signals.SIGWINCH, tell)
    tell()


def _nowhere(_text: str) -> None:
    """Nobody wants to know."""


def _run(machine: Machine, reach: Reach) -> Outcome:
    """Start the machine and wait for its end. A second signal, while it is being stopped, kills."""

    def on_signal(number: int, _frame: object) -> None:
        machine.end(Outcome(outcome.SIGNAL, f"ended by {_ENDING_SIGNALS[number]}", signal=number))

    # An ignored signal stays ignored: that is how nohup, and a shell's background jobs, ask for it.
    numbers = [number for number in _ENDING_SIGNALS if signals.getsignal(number) != signals.SIG_IGN]
    for number in numbers:
        signals.signal(number, on_signal)
    try:
        machine.start()
        reach.open(machine)
        gc.freeze()  # all this stays
        gc.enable()
        return machine.wait()
    finally:
        for number in numbers:
            signals.signal(number, signals.SIG_DFL)


def _report(end: Outcome, machine: Machine, trace: TraceOutput, *, quiet: bool) -> int:
    if end.error is not None:
        raise end.error
    if machine.trace is not None:
        show("\n".join((*machine.trace.summary(), *trace.losses())))
    if end.detail:
        show(end.detail)
    if not quiet or end.exit_code:
        say(end.message)
    return end.exit_code
