# SPDX-License-Identifier: Apache-2.0
"""``pyvmm reset``: restart a guest, as its reset button does."""

from __future__ import annotations

from pyvmm.cli import guests
from pyvmm.control.runfolder import Found

COMMAND = guests.command(
    "reset", "Restart a guest at once, as its reset button does. What it has not written is lost.", every=True
)
_PATIENCE = 120.0


def main(words: list[str]) -> int:
    """Restart it."""
    return guests.run(COMMAND, words, _reset)


def _reset(found: Found, _values: guests.Values) -> tuple[int, guests.Values, str]:
    with guests.connect(found) as control:
        control.request("reset", patience=_PATIENCE)
    return 0, {"state": "running"}, "restarted"
