# SPDX-License-Identifier: Apache-2.0
"""``pyvmm inspect``: how a running guest is put together, and what it does."""

from __future__ import annotations

from pyvmm import inspection
from pyvmm.cli import guests
from pyvmm.control.runfolder import Found

COMMAND = guests.command(
    "inspect",
    "A running guest inside: memory slots, bus, interrupt routes, doorbells, queues, and exits by reason\n"
    "and by device.",
)


def main(words: list[str]) -> int:
    """Print it."""
    values = COMMAND.parse(words)
    return guests.on_guest(COMMAND, values, guests.name_of(values), lambda found: _inspect(found, values))


def _inspect(found: Found, values: guests.Values) -> int:
    with guests.connect(found) as control:
        result = {"name": found.name, **control.request("inspect")}
    if values.get("json"):
        guests.print_json(result)
    else:
        print(inspection.to_text(result))
    return 0
