# SPDX-License-Identifier: Apache-2.0
"""From exec to the guest, to its user space, and to its end: of one, and of many at once."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.guest import Guest
from benchmarks.programs import QUIET, SERIAL, VIRTIO, Argv, Bench, Figures, running, seconds_to_end

AT_ONCE = 8
USER_SPACE, POWER_OFF = "user space", "power-off"
USUAL, EARLY_LOG, SERIAL_LOG = "as usual", "log, early console", "log, serial"
QUIET_RUN = "quiet"
_TRACING = Path("/sys/kernel/tracing")
# How much of its log the guest's kernel prints, and through what.
_LOGS = {
    QUIET_RUN: QUIET[SERIAL],
    EARLY_LOG: "console=ttyS0 earlycon=sbi",
    SERIAL_LOG: "console=ttyS0",
}
# busybox's init runs it first. The quotes keep the word out of what the kernel prints of its command line.
TO_POWER_OFF = " -- eval echo USER''SPACE;poweroff -f"
_UP = b"USERSPACE"


def start_up(bench: Bench) -> Figures:
    """Seconds from exec to KVM's first entry into the guest; for the bare interpreter, to its end."""
    bare = [sys.executable, "-c", ""]
    found = bench.interleaved(seconds_to_end, {"python3": bare})
    with entry_tracing():
        return {**found, **bench.interleaved(seconds_to_entry, bench.guests(QUIET[VIRTIO], VIRTIO))}


def whole_run(bench: Bench) -> Figures:
    """Seconds from exec to the init's first word, and to the end of a guest that then powers off."""
    programs = {
        f"{program}, {log}": argv
        for log, params in _LOGS.items()
        for program, argv in bench.guests(params + TO_POWER_OFF, SERIAL).items()
    }
    # pyvmm has a virtio console then; QEMU's default network card would want a file for its boot ROM.
    programs[f"pyvmm, {USUAL}"] = bench.pyvmm_linux(TO_POWER_OFF)
    qemu = bench.qemu_linux(_LOGS[SERIAL_LOG] + TO_POWER_OFF, "-nographic", "-nic", "none")
    programs[f"qemu, {USUAL}"] = qemu
    found = {}
    for name, times in bench.interleaved(seconds_up_and_down, programs).items():
        ups, downs = zip(*times, strict=True)
        found.update({f"{name}, {USER_SPACE}": list(ups), f"{name}, {POWER_OFF}": list(downs)})
    return found


def many(bench: Bench) -> Figures:
    """Seconds until the last of many guests that were started at once has powered off."""
    programs = bench.guests(QUIET[SERIAL] + TO_POWER_OFF, SERIAL)
    return bench.interleaved(partial(seconds_to_end, copies=AT_ONCE), programs)


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


def seconds_up_and_down(argv: Argv) -> tuple[float, float]:
    """How long a program takes to the first word of its guest's init, and to its own good end."""
    start = time.monotonic()
    with running(argv) as process:
        Guest(process).read_until(_UP)
        up = time.monotonic()
        process.communicate()
        down = time.monotonic()
    if process.returncode:
        sys.exit(f"{' '.join(argv)}: exit status {process.returncode}")
    return up - start, down - start
