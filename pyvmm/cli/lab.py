# SPDX-License-Identifier: Apache-2.0
"""``pyvmm lab``: the emulated RISC-V KVM host."""

from __future__ import annotations

import json
import sys

from pyvmm.cli.in_lab import DEFAULT_FLAVOUR, progress
from pyvmm.cli.parser import Command, HelpRequested, Option, UsageError
from pyvmm.nearest import nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.lab.host import Lab

    Values = dict[str, object]

_FLAVOURS = ("aia", "plic", "counting")
_FLAVOUR = Option("--flavour", key="flavour", choices=_FLAVOURS, metavar="KIND", help="which lab host [aia]")
_JSON = Option("--json", key="json", help="as JSON")

COMMANDS = {
    "build": Command(
        "lab build", "Fetch and build what a lab host needs, into the user's cache.", (_FLAVOUR,)
    ),
    "start": Command("lab start", "Have the lab host running; builds it first when needed.", (_FLAVOUR,)),
    "stop": Command(
        "lab stop",
        "End lab hosts and everything that runs in them: all of them, or one flavour.",
        (_FLAVOUR,),
    ),
    "status": Command("lab status", "What runs, and how it was started.", (_FLAVOUR, _JSON)),
    "shell": Command("lab shell", "A shell in the lab host.", (_FLAVOUR,)),
    "exec": Command(
        "lab exec",
        "Run a command in the lab host, in the same directory, with the same files; exits with its status.",
        (
            _FLAVOUR,
            Option(
                "--with",
                key="distributions",
                metavar="NAME",
                many=True,
                help="offer this Python distribution there; test: all that the tests need",
            ),
        ),
        rest="command",
    ),
}


class _LabCommand(Command):
    """``pyvmm lab`` itself: its help lists the subcommands."""

    def help(self) -> str:
        lines = [f"  {name:<8}{command.summary}" for name, command in COMMANDS.items()]
        return "\n".join(["usage: pyvmm lab COMMAND [options]", "", self.summary, "", *lines]) + "\n"


COMMAND = _LabCommand("lab", "An emulated RISC-V KVM host, for machines that are not RISC-V.")


def main(words: list[str]) -> int:
    """Run one of the subcommands."""
    if not words or words[0] in ("-h", "--help"):
        raise HelpRequested
    name = words[0]
    if name not in COMMANDS:
        raise UsageError(f"pyvmm lab has no command {name!r}.{nearest(name, COMMANDS)} See pyvmm lab --help.")
    try:
        values = COMMANDS[name].parse(words[1:])
    except HelpRequested:
        sys.stdout.write(COMMANDS[name].help())
        return 0
    return _ACTIONS[name](values)


def _lab(values: Values) -> Lab:
    from pyvmm.lab.host import Lab

    return Lab(str(values.get("flavour", DEFAULT_FLAVOUR)))


def _build(values: Values) -> int:
    print(json.dumps(_lab(values).build(progress), indent=2))
    return 0


def _start(values: Values) -> int:
    _lab(values).start(progress)
    return 0


def _stop(values: Values) -> int:
    flavours = [values["flavour"]] if "flavour" in values else _FLAVOURS
    for flavour in flavours:
        if _lab({"flavour": flavour}).stop():
            progress(f"stopped {flavour}")
    return 0


def _status(values: Values) -> int:
    flavours = [values["flavour"]] if "flavour" in values else _FLAVOURS
    found = [_lab({"flavour": flavour}).status() for flavour in flavours]
    if values.get("json"):
        print(json.dumps(found, indent=2))
        return 0
    for status in found:
        print(f"{status['flavour']}: {_shown(status)}")
    return 0


def _shown(status: Values) -> str:
    if not status["running"]:
        return "being started" if status["starting"] else "not running"
    facts = ", ".join(f"{key} {value}" for key, value in status.items() if key not in ("flavour", "running"))
    return f"running ({facts})"


def _shell(values: Values) -> int:
    return _lab(values).shell(progress)


def _exec(values: Values) -> int:
    command = values["command"]
    assert isinstance(command, list)
    distributions = values.get("distributions", [])
    assert isinstance(distributions, list)
    if "test" in distributions:
        from pyvmm.lab.sync import TEST

        distributions = [*TEST, *(name for name in distributions if name != "test")]
    return _lab(values).run(command, distributions=distributions, progress=progress)


_ACTIONS: dict[str, Callable[[Values], int]] = {
    "build": _build,
    "start": _start,
    "stop": _stop,
    "status": _status,
    "shell": _shell,
    "exec": _exec,
}
