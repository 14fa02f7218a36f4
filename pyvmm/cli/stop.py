# SPDX-License-Identifier: Apache-2.0
"""``pyvmm stop``: end a guest, gently if it lets us."""

from __future__ import annotations

from pyvmm import outcome
from pyvmm.cli import guests
from pyvmm.cli.parser import Option
from pyvmm.config import parse_duration
from pyvmm.control import stopping
from pyvmm.control.runfolder import Found

COMMAND = guests.command(
    "stop",
    "End a guest: press its power key, after some time have its kernel power off (SysRq), and end it by\n"
    "force if it does not: then the exit code is 124.",
    Option("--grace", key="grace", metavar="TIME", help="time for the guest to power off [20s]"),
    every=True,
)
# Seconds beyond the grace period: for SysRq, and for pyvmm to finish.
_MORE = 60.0
_SAID = {
    stopping.BY_POWER_KEY: "powered off",
    stopping.BY_SYSRQ: "did not heed its power key within {grace:g} s; its kernel powered off (SysRq)",
    stopping.OTHERWISE: "ended otherwise meanwhile: {message}",
    stopping.BY_FORCE: "did not power off within {grace:g} s, and was ended by force",
}


def main(words: list[str]) -> int:
    """Stop it."""
    _grace(COMMAND.parse(words))  # wrong words are found before any guest is looked for
    return guests.run(COMMAND, words, _stop)


def _grace(values: guests.Values) -> float:
    return parse_duration(values.get("grace", stopping.GRACE), "--grace")


def _stop(found: Found, values: guests.Values) -> tuple[int, guests.Values, str]:
    grace = _grace(values)
    with guests.connect(found) as control:
        result = control.request("stop", grace=grace, patience=grace + _MORE)
        control.wait_closed(_MORE)  # then its name is free again
    code = outcome.EXIT_TIMEOUT if result["how"] == stopping.BY_FORCE else 0
    said = _SAID[result["how"]].format(grace=grace, message=result["message"])
    return code, result, said
