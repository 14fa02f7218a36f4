# SPDX-License-Identifier: Apache-2.0
"""What a guest costs that does nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks.guest import Guest, all_booted
from benchmarks.programs import QUIET, VIRTIO, Bench, Figures

_SECONDS = 60
_SETTLE = 5  # seconds in which the guest's kernel ends what it put off in its boot
_USER_TIME = 13  # the index of utime in /proc/PID/stat; stime and both times of ended children follow


def idle(bench: Bench) -> Figures:
    """CPU seconds in a minute of a guest whose shell waits for input; all programs in the same minutes."""
    with all_booted(bench.guests(QUIET[VIRTIO], VIRTIO)) as guests:
        found: Figures = {name: [] for name in guests}
        time.sleep(_SETTLE)
        for _ in range(bench.rounds):
            before = {name: _used(guest) for name, guest in guests.items()}
            time.sleep(_SECONDS)
            for name, guest in guests.items():
                found[name].append(_used(guest) - before[name])
        return found


def _used(guest: Guest) -> float:
    return cpu_seconds(Path(f"/proc/{guest.pid}/stat").read_text())


def cpu_seconds(stat: str) -> float:
    """The CPU time, guest's included, of a process and of its children that have ended."""
    after_name = stat.rpartition(")")[2].split()  # a name may have spaces; pid and name are two fields
    times = after_name[_USER_TIME - 2 : _USER_TIME + 2]
    return sum(int(ticks) for ticks in times) / os.sysconf("SC_CLK_TCK")
