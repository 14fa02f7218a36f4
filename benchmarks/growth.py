# SPDX-License-Identifier: Apache-2.0
"""How the cost of pyvmm grows with the machine that it makes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.boot import entry_tracing, seconds_to_entry
from benchmarks.guest import booted
from benchmarks.memory import beside_guest_ram
from benchmarks.programs import MEM_MIB, QUIET, VIRTIO, Argv, Bench, Figures, interleaved

CPUS, DEVICES, RAM, QUEUES = "vCPUs", "devices (virtio-rng)", "GiB of guest RAM", "queues of a disk"
START_UP, PROMPT, MEMORY = "exec to first KVM_RUN", "exec to the shell's prompt", "memory without guest RAM"
STORE = "MMIO store"
# What grows, to which sizes.
AXES = {CPUS: (1, 2, 4), DEVICES: (1, 4, 16), RAM: (1, 4, 16), QUEUES: (1, 8, 64)}
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


def growth(bench: Bench) -> Figures:
    """Seconds and bytes of pyvmm for each size of each axis; all else is as in the other measures."""
    image = bench.image("growth")
    image.write_bytes(bytes(1 << 20))
    starts: dict[str, Callable[[], float]] = {}
    prompts: dict[str, Callable[[], tuple[float, float]]] = {}
    for axis, sizes in AXES.items():
        for size in sizes:
            mem_mib = size << 10 if axis == RAM else MEM_MIB
            argv = bench.pyvmm_linux(QUIET[VIRTIO], *_words(axis, size, image), mem=mem_mib)
            starts[name(axis, size, START_UP)] = partial(seconds_to_entry, argv)
            prompts[name(axis, size, "")] = partial(_to_prompt, argv, mem_mib)
    with _overcommitment():
        with entry_tracing():
            found = interleaved(bench.rounds, starts)
        for subject, pairs in interleaved(bench.rounds, prompts).items():
            seconds, resident = zip(*pairs, strict=True)
            found |= {subject + PROMPT: list(seconds), subject + MEMORY: list(resident)}
    image.unlink()
    return found


def name(axis: str, size: int, what: str) -> str:
    """The name of a figure at that size."""
    return f"{size} {axis}, {what}"


def devices(count: int) -> list[str]:
    """What gives a machine so many devices."""
    return ["--device=rng"] * count


def _words(axis: str, size: int, image: Path) -> list[str]:
    """What makes a machine of that size; guest RAM is not among it."""
    return {
        CPUS: [f"--cpus={size}"],
        DEVICES: devices(size),
        RAM: [],
        QUEUES: [f"--disk={image},queues={size}"],
    }[axis]


def _to_prompt(argv: Argv, mem_mib: int) -> tuple[float, float]:
    """Seconds until the guest's shell prompts, and what is resident then."""
    start = time.monotonic()
    with booted(argv) as guest:
        return time.monotonic() - start, beside_guest_ram(guest.pid, mem_mib)


@contextlib.contextmanager
def _overcommitment() -> Iterator[None]:
    """Have the kernel promise more memory than it has, as guests leave most of it untouched. Needs root."""
    before = _OVERCOMMIT.read_text()
    _OVERCOMMIT.write_text("1")
    try:
        yield
    finally:
        _OVERCOMMIT.write_text(before)
