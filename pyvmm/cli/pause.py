# SPDX-License-Identifier: Apache-2.0
"""``pyvmm pause``: make a guest, its devices and its time stand still."""

from __future__ import annotations

from pyvmm.cli import guests
from pyvmm.control.runfolder import Found

COMMAND = guests.command(
    "pause", "Make a guest stand still, with its devices and its time. pyvmm resume goes on.", every=True
)
_PATIENCE = 60.0


def main(words: list[str]) -> int:
    """Pause it."""
    return guests.run(COMMAND, words, _pause)


def _pause(found: Found, _values: guests.Values) -> tuple[int, guests.Values, str]:
    with guests.connect(found) as control:
        control.request("pause", patience=_PATIENCE)
    return 0, {"state": "paused"}, "paused"
