# SPDX-License-Identifier: Apache-2.0
"""Much text through a console, from a guest's program to whoever reads the monitor's output."""

from __future__ import annotations

import sys
import time
from functools import partial

from benchmarks.guest import Guest, all_booted
from benchmarks.programs import QUIET, SERIAL, VIRTIO, Bench, Figures, interleaved

SIZE, _SERIAL_SIZE = 1 << 20, 128 << 10
_DATA = b"x"  # in none of the commands
_BEGIN, _END = "BE''GIN", "E''ND"  # so that their echo is not what is waited for


def console(bench: Bench) -> Figures:
    """Bytes a second of a mebibyte through the virtio console."""
    return _rates(bench, VIRTIO, SIZE)


def serial(bench: Bench) -> Figures:
    """Bytes a second of 128 KiB through the serial port."""
    return _rates(bench, SERIAL, _SERIAL_SIZE)


def _rates(bench: Bench, console: str, size: int) -> Figures:
    """Bytes a second, without what the terminal adds: the guest's is raw."""
    with all_booted(bench.guests(QUIET[console], console)) as guests:
        for guest in guests.values():
            prepare(guest, size)
        runs = {name: partial(bytes_a_second, guest, size) for name, guest in guests.items()}
        return interleaved(bench.rounds, runs)


def prepare(guest: Guest, size: int) -> None:
    """Make what ``bytes_a_second`` prints."""
    guest.run(f"dd if=/dev/zero bs=4096 count={size // 4096} 2>/dev/null | tr '\\0' x >/tmp/data")


def bytes_a_second(guest: Guest, size: int) -> float:
    """What the guest's program prints, raw.

    The pause makes the data begin with a read of its own: what is read after that is timed.
    """
    begin, end = (word.replace("''", "").encode() for word in (_BEGIN, _END))
    guest.send(f"stty raw; echo {_BEGIN}; usleep 200000; cat /tmp/data; echo {_END}; stty sane")
    first = guest.read_until(begin).partition(begin)[2]
    while _DATA not in first:
        first = guest.read_some()
    start = time.monotonic()
    rest = guest.read_until(end)
    seconds = time.monotonic() - start
    guest.run("true")
    got = first.count(_DATA), rest.count(_DATA)
    if sum(got) != size:
        sys.exit(f"of {size} bytes on the console, {sum(got)} came out")
    return got[1] / seconds
