# SPDX-License-Identifier: Apache-2.0
"""``pyvmm kill``: end a guest at once."""

from __future__ import annotations

import os
import select
import signal

from pyvmm.cli import guests
from pyvmm.control import runfolder
from pyvmm.control.client import ControlGone
from pyvmm.control.runfolder import Found
from pyvmm.errors import ConfigError, HostError

COMMAND = guests.command(
    "kill",
    "End a guest at once, like pulling the plug. If its pyvmm does not answer, that is killed.",
    every=True,
)
_PATIENCE = 5.0  # seconds


def main(words: list[str]) -> int:
    """End it."""
    return guests.run(COMMAND, words, _kill)


def _kill(found: Found, _values: guests.Values) -> tuple[int, guests.Values, str]:
    try:
        with guests.connect(found, patience=_PATIENCE) as control:
            control.request("kill")
            if control.wait_closed(_PATIENCE):
                return 0, {"how": "ended"}, "ended"
    except (ConfigError, ControlGone):
        pass
    _kill_process(found)
    return 0, {"how": "killed"}, f"its pyvmm (process {found.pid}) did not answer, and was killed"


def _kill_process(found: Found) -> None:
    """Kill the process that holds the guest's name, and no other that has its number by now."""
    try:
        fd = os.pidfd_open(found.pid)
    except (ProcessLookupError, OSError):
        return
    try:
        if found.pid in [guest.pid for guest in runfolder.running() if guest.name == found.name]:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            if not select.select([fd], [], [], _PATIENCE)[0]:
                raise HostError(
                    f"Process {found.pid} does not end even when it is killed: the host is stuck."
                )
    finally:
        os.close(fd)
