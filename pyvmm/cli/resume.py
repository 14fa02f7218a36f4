# SPDX-License-Identifier: Apache-2.0
"""``pyvmm resume``: let a paused guest go on."""

from __future__ import annotations

from pyvmm.cli import guests
from pyvmm.control.runfolder import Found

COMMAND = guests.command("resume", "Let a paused guest go on where it stood.", every=True)


def main(words: list[str]) -> int:
    """Resume it."""
    return guests.run(COMMAND, words, _resume)


def _resume(found: Found, _values: guests.Values) -> tuple[int, guests.Values, str]:
    with guests.connect(found) as control:
        control.request("resume")
    return 0, {"state": "running"}, "running"
