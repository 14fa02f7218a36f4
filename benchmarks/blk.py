# SPDX-License-Identifier: Apache-2.0
"""A disk under load, from inside the guest: its image is a raw file in the host's memory."""

from __future__ import annotations

import os
import re
import sys
from functools import partial
from pathlib import Path

from benchmarks.guest import Guest, all_booted
from benchmarks.programs import MMIO, PCI, QUIET, SERIAL, Bench, Figures, interleaved

_MIB = 1 << 20
_IMAGE_MIB = 128
_SECONDS = 2
TRANSPORTS = (PCI, MMIO)
# Name of the figure, blkload's name of it, bytes a request, requests in flight.
RANDOM_READ, DEEP_READ = "random read 4 KiB, depth 1", "random read 4 KiB, depth 16"
RANDOM_WRITE, SEQUENTIAL = "random write 4 KiB, depth 4", "sequential read 128 KiB"
LOADS = {
    RANDOM_READ: ("randread", 4096, 1),
    DEEP_READ: ("randread", 4096, 16),
    RANDOM_WRITE: ("randwrite", 4096, 4),
    SEQUENTIAL: ("read", 128 << 10, 1),
}
_RESULT = re.compile(r": ([0-9.]+) ops/s")


def blk(bench: Bench) -> Figures:
    """Requests a second; of sequential reads, bytes. The guest uses O_DIRECT, the host its page cache."""
    found: Figures = {}
    for transport in TRANSPORTS:
        programs = bench.guests(QUIET[SERIAL], SERIAL, disk=transport)
        for program in programs:
            fill(bench.image(program))
        with all_booted(programs) as guests:
            for guest in guests.values():
                find_disk(guest, transport)
            runs = {
                f"{program}, {transport}, {name}": partial(load, guest, *words)
                for name, words in LOADS.items()
                for program, guest in guests.items()
            }
            found |= interleaved(bench.rounds, runs)
        for program in programs:
            bench.image(program).unlink()
    return found


def fill(image: Path) -> None:
    """Make an image without holes."""
    block = os.urandom(_MIB)
    with image.open("wb") as file:
        for _ in range(_IMAGE_MIB):
            file.write(block)


def find_disk(guest: Guest, transport: str) -> None:
    """Load the drivers."""
    guest.run(f"modprobe virtio_{transport} 2>/dev/null; modprobe virtio_blk && test -b /dev/vda")


def load(guest: Guest, kind: str, size: int, depth: int) -> float:
    """What blkload in the guest finds."""
    found = requests_a_second(guest.run(f"blkload bench /dev/vda {kind} {size} {depth} {_SECONDS}"))
    return found * size if kind == "read" else found


def requests_a_second(said: str) -> float:
    """The figure in what blkload printed."""
    found = _RESULT.search(said)
    if not found:
        sys.exit(f"blkload gave no figure: {said}")
    return float(found[1])
