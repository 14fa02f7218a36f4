# SPDX-License-Identifier: Apache-2.0
"""What a guest takes of memory beside its own RAM: the first, and each further one."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.guest import PROMPT, Guest, booted
from benchmarks.programs import MEM_MIB, QUIET, VIRTIO, Argv, Bench, Figures, interleaved, running

FURTHER = "each further"
_MORE = 3  # guests after the first
_LIBRARY = Path(__file__).with_name("machines.py")


def memory(bench: Bench) -> Figures:
    """Resident bytes beside the guest's RAM, while the guest's shell waits for input.

    Further guests: in the same process for pyvmm, which is a library; the peers are a process each.
    """
    guests = bench.guests(QUIET[VIRTIO], VIRTIO)
    runs = {name: partial(resident_bytes, argv) for name, argv in guests.items()}
    runs[f"pyvmm, {FURTHER}"] = partial(_further_machine, bench)
    del guests["pyvmm"]
    runs |= {f"{name}, {FURTHER}": partial(_further_process, argv) for name, argv in guests.items()}
    return interleaved(bench.rounds, runs)


def resident_bytes(argv: Argv) -> float:
    """What of a program is in memory, but for the guest's RAM, when the guest's shell prompts."""
    with booted(argv) as guest:
        return beside_guest_ram(guest.pid, MEM_MIB)


def _further_machine(bench: Bench) -> float:
    command = [sys.executable, "-P", str(_LIBRARY), str(bench.kernel), str(bench.initrd()), f"{MEM_MIB}M"]
    with running(command) as process:
        program = Guest(process)

        def one_more() -> None:
            program.send("")
            program.read_until(PROMPT)

        return _each_further(one_more, [program.pid])


def _further_process(argv: Argv) -> float:
    pids: list[int] = []
    with contextlib.ExitStack() as guests:
        return _each_further(lambda: pids.append(guests.enter_context(booted(argv)).pid), pids)


def _each_further(one_more: Callable[[], None], pids: list[int]) -> float:
    """By how much the processes grow, a guest, once there is one. What they share counts once (Pss)."""
    one_more()
    first = _share(pids)
    for _ in range(_MORE):
        one_more()
    return (_share(pids) - first) / _MORE


def _share(pids: list[int]) -> int:
    return sum(beside_guest_ram(pid, MEM_MIB, "Pss") for pid in pids)


def beside_guest_ram(pid: int, mem_mib: int, field: str = "Rss") -> int:
    """What of a process is in memory, in bytes, but for its guest's RAM; by Pss, its share of that."""
    return without_guest_ram(Path(f"/proc/{pid}/smaps").read_text(), mem_mib, field)


def without_guest_ram(smaps: str, mem_mib: int, field: str) -> int:
    """The sum of a field, in bytes, over all mappings but those large enough to be a guest's RAM."""
    sizes, values = _kilobytes(smaps, "Size"), _kilobytes(smaps, field)
    if max(sizes) < mem_mib * 1024:
        sys.exit("no mapping is large enough for the guest's RAM")
    return sum(value for size, value in zip(sizes, values, strict=True) if size < mem_mib * 1024) * 1024


def _kilobytes(smaps: str, field: str) -> list[int]:
    return [int(line.split()[1]) for line in smaps.splitlines() if line.startswith(f"{field}:")]
