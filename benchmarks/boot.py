# SPDX-License-Identifier: Apache-2.0
"""From exec to the guest, and to its end; and what that takes of memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.guest import PROMPT, Guest
from benchmarks.programs import (
    MEM_MIB,
    PYVMM_SERIAL,
    PYVMM_VIRTIO,
    QEMU_SERIAL,
    QEMU_VIRTIO,
    QUIET,
    QUIET_VIRTIO,
    Argv,
    Bench,
    Figures,
    running,
    seconds_to_end,
)

_TRACING = Path("/sys/kernel/tracing")
# How much of its log the guest's kernel prints, and through what.
_LOGS = {
    "quiet": QUIET,
    "log, early console": "console=ttyS0 earlycon=sbi",
    "log, serial": "console=ttyS0",
}
POWER_OFF = " -- poweroff -f"  # busybox's init runs it first


def start_up(bench: Bench) -> Figures:
    """Seconds from exec to KVM's first entry into the guest; for the bare interpreter, to its end."""
    bare = [sys.executable, "-c", ""]
    found = bench.interleaved(seconds_to_end, {"python3": bare})
    with entry_tracing():
        return {**found, **bench.interleaved(seconds_to_entry, _at_rest(bench))}


def whole_run(bench: Bench) -> Figures:
    """Seconds from exec to the end of a guest that powers off as soon as its user space runs."""
    programs = {}
    for log, params in _LOGS.items():
        programs[f"pyvmm, {log}"] = bench.pyvmm_linux(params + POWER_OFF, *PYVMM_SERIAL)
        programs[f"qemu, {log}"] = bench.qemu_linux(params + POWER_OFF, *QEMU_SERIAL)
    # pyvmm has a virtio console then; QEMU's default network card would want a file for its boot ROM.
    programs["pyvmm, as usual"] = bench.pyvmm_linux(POWER_OFF)
    programs["qemu, as usual"] = bench.qemu_linux(
        _LOGS["log, serial"] + POWER_OFF, "-nographic", "-nic", "none"
    )
    return bench.interleaved(seconds_to_end, programs)


def memory(bench: Bench) -> Figures:
    """Resident bytes beside the guest's RAM, while the guest's shell waits for input."""
    return bench.interleaved(resident_bytes, _at_rest(bench))


def _at_rest(bench: Bench) -> dict[str, Argv]:
    """Both with a virtio console, which is pyvmm's default."""
    return {
        "pyvmm": bench.pyvmm_linux(QUIET_VIRTIO, *PYVMM_VIRTIO),
        "qemu": bench.qemu_linux(QUIET_VIRTIO, *QEMU_VIRTIO),
    }


@contextlib.contextmanager
def entry_tracing() -> Iterator[None]:
    """Have the kernel record its entries into guests, with times of CLOCK_MONOTONIC. Needs root."""
    if not (_TRACING / "events").exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", str(_TRACING)], check=True)
    settings = {
        "trace_clock": ("mono", "local"),
        "options/event-fork": ("1", "0"),
        "set_event_pid": (str(os.getpid()), " "),  # our children, with event-fork; nobody else's guests
        "events/kvm/kvm_entry/enable": ("1", "0"),
    }
    try:
        for name, (value, _) in settings.items():
            (_TRACING / name).write_text(value)
        yield
    finally:
        for name, (_, before) in settings.items():
            (_TRACING / name).write_text(before)


def seconds_to_entry(argv: Argv) -> float:
    """How long a program takes to enter its guest; it is ended then."""
    (_TRACING / "trace").write_text("")
    with (_TRACING / "trace_pipe").open() as entries:
        start = time.monotonic()
        with running(argv):
            line = entries.readline()
    # "            vcpu-0-123     [000] .....    12.345678: kvm_entry: PC: 0x..."
    return float(line.partition(": kvm_entry:")[0].split()[-1]) - start


def resident_bytes(argv: Argv) -> float:
    """What of a program is in memory, but for the guest's RAM, when the guest's shell prompts."""
    with running(argv) as process:
        Guest(process).read_until(PROMPT)
        return without_guest_ram(Path(f"/proc/{process.pid}/smaps").read_text())


def without_guest_ram(smaps: str) -> int:
    """The sum of Rss, in bytes, over all mappings but the largest, which is the guest's RAM."""
    sizes = [int(line.split()[1]) for line in smaps.splitlines() if line.startswith("Size:")]
    resident = [int(line.split()[1]) for line in smaps.splitlines() if line.startswith("Rss:")]
    if max(sizes) < MEM_MIB * 1024:
        sys.exit("no mapping is large enough for the guest's RAM")
    return (sum(resident) - resident[sizes.index(max(sizes))]) * 1024
