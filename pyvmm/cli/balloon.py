# SPDX-License-Identifier: Apache-2.0
"""``pyvmm balloon``: take memory from a running guest, and give it back."""

from __future__ import annotations

from pyvmm.cli import guests
from pyvmm.cli.parser import UsageError
from pyvmm.config import format_size, parse_size
from pyvmm.control import runfolder
from pyvmm.control.runfolder import Found
from pyvmm.errors import ConfigError

COMMAND = guests.command(
    "balloon",
    "Have a guest do without SIZE of its memory, or with +SIZE less, or with -SIZE more; without SIZE, show\n"
    "how it is. A bare number is MiB. The guest needs a balloon: pyvmm run --balloon.",
    arguments="[NAME] [[+|-]SIZE]",
)


def main(words: list[str]) -> int:
    """Change or show it."""
    values = COMMAND.parse(words)
    arguments = values.get("arguments", [])
    assert isinstance(arguments, list)
    name, size = _name_and_size(arguments)
    params = _params(size)
    return guests.on_guest(COMMAND, values, name, lambda found: _balloon(found, values, params))


def _name_and_size(arguments: list[str]) -> tuple[str | None, str | None]:
    """Either may be left out: the name, when only one guest runs."""
    if len(arguments) > 2:
        raise UsageError(f"pyvmm balloon takes a NAME and a SIZE, but got {arguments[2]!r} as well.")
    if len(arguments) == 2:
        return arguments[0], arguments[1]
    if not arguments:
        return None, None
    (word,) = arguments
    if _is_size(word) and word not in [found.name for found in runfolder.running()]:
        return None, word
    return word, None


def _is_size(word: str) -> bool:
    try:
        _params(word)
    except ConfigError:
        return False
    return True


def _params(size: str | None) -> guests.Values:
    """The request's parameters. Raises ConfigError."""
    if size is None:
        return {}
    amount = parse_size(size.lstrip("+-") if size[:1] in ("+", "-") else size, "pyvmm balloon")
    if size[:1] not in ("+", "-"):
        return {"size": amount}
    return {"delta": -amount if size[0] == "-" else amount}


def _balloon(found: Found, values: guests.Values, params: guests.Values) -> int:
    with guests.connect(found) as control:
        result = control.request("balloon", **params)
    if values.get("json"):
        guests.print_json({"name": found.name, **result})
    else:
        print(f"{found.name}: {format_size(result['wanted'])} wanted, {format_size(result['actual'])} given")
    return 0
