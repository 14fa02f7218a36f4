# SPDX-License-Identifier: Apache-2.0
"""``pyvmm ps``: the guests that run."""

from __future__ import annotations

import os

from pyvmm.cli import guests
from pyvmm.cli.guests import HOST, JSON
from pyvmm.cli.parser import Command
from pyvmm.cli.say import say
from pyvmm.config import format_size
from pyvmm.control import runfolder
from pyvmm.control.runfolder import Found
from pyvmm.errors import PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.cli.guests import Values

COMMAND = Command("ps", "The guests that run, on this host and in lab hosts that run.", (JSON, HOST))
_PATIENCE = 5.0  # seconds
_COLUMNS = ("name", "where", "state", "pid", "uptime", "mem", "cpus", "program")


def main(words: list[str]) -> int:
    """List them."""
    values = COMMAND.parse(words)
    here, flavours = guests.places(values)
    found = _here() if here else []
    for flavour in flavours:
        found += [{**one, "where": f"lab:{flavour}"} for one in guests.lab_guests(flavour)]
    if values.get("json"):
        guests.print_json(found)
    elif found:
        print("\n".join(_table([_shown(one) for one in found])))
    else:
        say("no guest is running")
    return 0


def _here() -> list[Values]:
    return [facts for facts in guests.at_once(_status, runfolder.running()) if facts]


def _status(found: Found) -> Values:
    """What is known of a guest; nothing when it is over meanwhile."""
    facts: Values = {"name": found.name, "where": "local", "pid": found.pid}
    try:
        with guests.connect(found, patience=_PATIENCE) as control:
            return {**facts, **control.request("status")}
    except PyvmmError:
        if runfolder.is_over(found):
            return {}
        has_started = os.path.exists(found.path(runfolder.CONTROL_SOCKET))
        return {**facts, "state": "unreachable" if has_started else "starting"}


def _shown(one: Values) -> dict[str, str]:
    row = {name: str(one.get(name, "-")) for name in _COLUMNS}
    if "mem" in one:
        row["mem"] = format_size(one["mem"])
        row["uptime"] = _duration(one["uptime"])
    return row


def _duration(seconds: float) -> str:
    """Two units at most: 7s, 3m12s, 5h07m, 2d04h."""
    whole = int(seconds)
    for unit, part, size, of in (("d", "h", 86400, 3600), ("h", "m", 3600, 60), ("m", "s", 60, 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // of:02}{part}"
    return f"{whole}s"


def _table(rows: list[dict[str, str]]) -> list[str]:
    """Columns as wide as they must be, without WHERE when all guests are here."""
    names = [name for name in _COLUMNS if name != "where" or any(row["where"] != "local" for row in rows)]
    lines = [[name.upper() for name in names], *([row[name] for name in names] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(names))]
    return [
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
