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
# Seconds in which a pyvmm that works answers, on a busy host too,
_PATIENCE = 5.0
# in which it then brings the guest's devices to an end,
_CLOSING = 20.0
# and in which the kernel removes a process that was killed.
_DEATH = 60.0


def main(words: list[str]) -> int:
    """End it."""
    return guests.run(COMMAND, words, _kill)


def _kill(found: Found, _values: guests.Values) -> tuple[int, guests.Values, str]:
    try:
        with guests.connect(found, patience=_PATIENCE) as control:
            control.request("kill")
            if control.wait_closed(_CLOSING):
                return 0, {"how": "ended"}, "ended"
    except (ConfigError, ControlGone):
        pass
    if _kill_process(found):
        return 0, {"how": "killed"}, f"its pyvmm (process {found.pid}) did not answer, and was killed"
    return 0, {"how": "ended"}, "ended"


def _kill_process(found: Found) -> bool:
    """Kill the process that holds the guest's name, and no other that has its number by now.

    False when that has ended by itself. Raises HostError.
    """
    try:
        fd = os.pidfd_open(found.pid)
    except OSError:
        return False
    try:
        if found.pid not in [guest.pid for guest in runfolder.running() if guest.name == found.name]:
            return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        if not select.select([fd], [], [], _DEATH)[0]:
            raise HostError(f"Process {found.pid} does not end even when it is killed: the host is stuck.")
        return True
    except ProcessLookupError:  # just now
        return False
    finally:
        os.close(fd)
