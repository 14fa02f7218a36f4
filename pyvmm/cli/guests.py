# SPDX-License-Identifier: Apache-2.0
"""What the commands for running guests share: which guest is meant, where it runs, and how to ask it.

Guests run on this host, or in lab hosts when this is no RISC-V machine. A command for a guest in the lab is
run there, by the pyvmm there. No lab host is ever started for it: one that does not run has no guests.
"""

from __future__ import annotations

import json
import os
import sys
from errno import ECONNREFUSED, ENOENT

from pyvmm import outcome
from pyvmm.cli.parser import Command, Option, UsageError
from pyvmm.cli.say import say
from pyvmm.control import runfolder
from pyvmm.control.client import Control, ControlGone
from pyvmm.control.runfolder import Found
from pyvmm.errors import ConfigError, PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeVar

    from pyvmm.lab.host import Lab

    T = TypeVar("T")
    Values = dict[str, Any]
    #: Asks one guest; the exit code, what to print as JSON, and what to say of it.
    Ask = Callable[[Found, Values], tuple[int, Values, str]]

_FLAVOURS = ("aia", "plic", "counting")
HOST = Option(
    "--host",
    key="host",
    choices=("auto", "local", "lab", *(f"lab:{name}" for name in _FLAVOURS)),
    metavar="WHERE",
    help="where to look for the guest [auto]",
)
JSON = Option("--json", key="json", help="the result as JSON on stdout")
ALL = Option("--all", key="all", help="all running guests")
_AT_ONCE = 16


def command(name: str, summary: str, *options: Option, every: bool = False, arguments: str = "") -> Command:
    """A command for one running guest, or, with ``every``, for all of them."""
    known = (*options, *((ALL,) if every else ()), JSON, HOST)
    if arguments:
        return Command(name, summary, known, arguments=arguments)
    return Command(name, summary, known, positional=("name", "NAME"))


def run(command: Command, words: list[str], ask: Ask) -> int:
    """Run a command of requests: parse ``words``, find the guest or guests, ask, and tell what came of it."""
    values = command.parse(words)
    name = name_of(values)
    if values.get("all") and name is not None:
        raise UsageError(f"pyvmm {command.name} takes a NAME or --all, not both.")
    if values.get("all"):
        return _run_all(command, values, ask)
    return on_guest(command, values, name, lambda found: _one(found, values, ask))


def name_of(values: Values) -> str | None:
    """The NAME that was given, if any."""
    name = values.get("name")
    return None if name is None else str(name)


def on_guest(command: Command, values: Values, name: str | None, act: Callable[[Found], int]) -> int:
    """Do ``act`` with the guest that is meant, or run the command where that guest is; the exit code."""
    here, flavours = places(values)
    guests = {found.name: found for found in runfolder.running()} if here else {}
    if not flavours:
        return act(guests[runfolder.pick(name, guests)])
    if len(flavours) == 1 and not guests:
        return _in_lab(command, values, flavours[0])
    inside = {flavour: {one["name"] for one in lab_guests(flavour)} for flavour in flavours}
    everywhere = [*guests, *(one for names in inside.values() for one in names)]
    chosen = runfolder.pick(name, everywhere)
    if everywhere.count(chosen) > 1:
        where = [
            *(["local"] if chosen in guests else []),
            *(f"lab:{f}" for f in inside if chosen in inside[f]),
        ]
        raise ConfigError(f"Guests named {chosen} run in {' and '.join(where)}: choose with --host.")
    if chosen in guests:
        return act(guests[chosen])
    flavour = next(flavour for flavour, names in inside.items() if chosen in names)
    return _in_lab(command, values, flavour)


def connect(found: Found, **options: Any) -> Control:
    """A connection to a guest. Raises ConfigError when it has none yet, or no more."""
    try:
        return Control(found.path(runfolder.CONTROL_SOCKET), **options)
    except ControlGone as error:
        if error.errno in (ENOENT, ECONNREFUSED):
            sentence = f"The guest {found.name} is just starting or ending; try again in a moment."
        else:
            sentence = f"The guest {found.name} does not answer; end it with: pyvmm kill {found.name}"
        raise ConfigError(sentence) from error


def print_json(value: object) -> None:
    """One value on stdout."""
    print(json.dumps(value, indent=2))


def at_once(ask: Callable[[Found], T], guests: Sequence[Found]) -> list[T]:
    """What ``ask`` returns for each guest; none waits for another."""
    if len(guests) < 2:
        return [ask(found) for found in guests]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(ask, guests))


def _lab(flavour: str) -> Lab:
    from pyvmm.lab.host import Lab  # late: it takes longer to import than most commands to run

    return Lab(flavour)


def lab_guests(flavour: str) -> list[Values]:
    """What ``pyvmm ps --json`` says in a lab host that runs."""
    code, output = _output(flavour, ["ps", "--host=local", "--json"])
    if code:
        raise ConfigError(
            f"The guests in lab:{flavour} cannot be listed there: pyvmm ps ended with code {code}."
        )
    found: list[Values] = json.loads(output)
    return found


def places(values: Values) -> tuple[bool, list[str]]:
    """Whether to look on this host, and in which lab hosts, of those that run."""
    where = str(values.get("host", "auto"))
    if where == "local" or (where == "auto" and os.uname().machine == "riscv64"):
        return True, []
    wanted = [where.partition(":")[2]] if ":" in where else list(_FLAVOURS)
    running = [flavour for flavour in wanted if _lab(flavour).status()["running"]]
    if where != "auto" and not running:
        raise ConfigError(f"There is no running host {where}, and so no guest in it.")
    return where == "auto", running


def _words(command: Command, values: Values) -> list[str]:
    """The command line for a pyvmm elsewhere."""
    words = command.words({**values, "host": "local"})
    given = values.get("arguments", [values["name"]] if "name" in values else [])
    return [command.name, *words, *(["--", *given] if given else [])]


def _in_lab(command: Command, values: Values, flavour: str) -> int:
    return _lab(flavour).run(["python3", "-m", "pyvmm", *_words(command, values)])


def _output(flavour: str, words: list[str]) -> tuple[int, str]:
    import subprocess

    argv = ["python3", "-m", "pyvmm", *words]
    process = _lab(flavour).popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    output, _ = process.communicate()
    return process.returncode, output.decode("utf-8", "replace")


def _one(found: Found, values: Values, ask: Ask) -> int:
    code, result, said = ask(found, values)
    if values.get("json"):
        print_json({"name": found.name, **result})
    else:
        say(f"{found.name}: {said}")
    return code


def _run_all(command: Command, values: Values, ask: Ask) -> int:
    here, flavours = places(values)
    code = 0
    results = []
    if here:
        guests = runfolder.running()
        for one, result, said in at_once(lambda found: _attempt(found, values, ask), guests):
            code = max(code, one)
            results.append(result)
            if one or not values.get("json"):
                say(f"{result['name']}: {said}")
    for flavour in flavours:
        sys.stdout.flush()
        if values.get("json"):
            one, output = _output(flavour, _words(command, values))
            results += [{**result, "where": f"lab:{flavour}"} for result in json.loads(output or "[]")]
        else:
            one = _in_lab(command, values, flavour)
        code = max(code, one)
    if values.get("json"):
        print_json(results)
    elif not results and not flavours:
        say("no guest is running")
    return code


def _attempt(found: Found, values: Values, ask: Ask) -> tuple[int, Values, str]:
    """As ``ask``, with its failure as an answer: the other guests are asked all the same."""
    try:
        code, result, said = ask(found, values)
        return code, {"name": found.name, "ok": True, **result}, said
    except PyvmmError as error:
        return outcome.EXIT_USAGE, {"name": found.name, "ok": False, "error": str(error)}, str(error)
