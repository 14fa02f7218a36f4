# SPDX-License-Identifier: Apache-2.0
"""The measurements themselves, on the RISC-V host: standard library only, started as a script.

Reads a job (JSON) from standard input, prints raw figures (JSON). Everything that a measured program reads is
in memory first: the lab's shared files would be part of the figures otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

Argv = list[str]
Figures = dict[str, list[float]]

_TRACING = Path("/sys/kernel/tracing")
_MEM_MIB = 256
_PROMPT = b"~ # "
# How much of its log the guest's kernel prints, and through what.
_QUIET = "console=ttyS0 quiet"
_LOGS = {
    "quiet": _QUIET,
    "log, early console": "console=ttyS0 earlycon=sbi",  # what pyvmm run says when the user says nothing
    "log, serial": "console=ttyS0",
}
_POWER_OFF = " -- poweroff -f"  # busybox's init runs it first


class Bench:
    """The programs to measure, in ``directory``, and how often to do it."""

    def __init__(self, directory: Path, rounds: int) -> None:
        self.directory = directory
        self.rounds = rounds

    def pyvmm(self, *arguments: str) -> Argv:
        """``pyvmm run`` with one CPU."""
        return [
            sys.executable,
            "-m",
            "pyvmm",
            "run",
            "--host=local",
            "--quiet",
            f"--mem={_MEM_MIB}M",
            *arguments,
        ]

    def pyvmm_linux(self, params: str) -> Argv:
        """``pyvmm run`` with Debian's kernel and busybox."""
        return self.pyvmm(
            f"--kernel={self.directory / 'Image'}",
            f"--initrd={self.directory / 'initrd'}",
            f"--params={params}",
        )

    def qemu_linux(self, params: str, *console: str) -> Argv:
        """The same guest under QEMU with KVM; without devices that pyvmm does not have, either."""
        root = self.directory / "qemu"
        return [
            str(root / "ld-linux-riscv64-lp64d.so.1"), "--library-path", str(root),
            str(root / "qemu-system-riscv64"), "-L", str(root), "-no-reboot",
            *(console or ("-nodefaults", "-display", "none", "-serial", "stdio")),
            "-M", "virt", "-accel", "kvm", "-smp", "1", "-m", f"{_MEM_MIB}M",
            "-kernel", str(self.directory / "Image"), "-initrd", str(self.directory / "initrd"),
            "-append", params,
        ]  # fmt: skip

    def interleaved(self, measure: Callable[[Argv], float], programs: dict[str, Argv]) -> Figures:
        """Every program once a round, so that what slows the machine for a while slows them all."""
        found: Figures = {name: [] for name in programs}
        for _ in range(self.rounds):
            for name, argv in programs.items():
                found[name].append(measure(argv))
        return found


def start_up(bench: Bench) -> Figures:
    """Seconds from exec to KVM's first entry into the guest; for the bare interpreter, to its end."""
    bare = [sys.executable, "-c", ""]
    found = bench.interleaved(seconds_to_end, {"python3": bare})
    with entry_tracing():
        return {**found, **bench.interleaved(seconds_to_entry, _both(bench, _QUIET))}


def whole_run(bench: Bench) -> Figures:
    """Seconds from exec to the end of a guest that powers off as soon as its user space runs."""
    programs = {}
    for log, params in _LOGS.items():
        for program, argv in _both(bench, params + _POWER_OFF).items():
            programs[f"{program}, {log}"] = argv
    usual = bench.qemu_linux(_LOGS["log, serial"] + _POWER_OFF, "-nographic", "-nic", "none")
    programs["qemu, as usual"] = usual  # its default network card would want a file for its boot ROM
    return bench.interleaved(seconds_to_end, programs)


def memory(bench: Bench) -> Figures:
    """Resident bytes beside the guest's RAM, while the guest's shell waits for input."""
    return bench.interleaved(resident_bytes, _both(bench, _QUIET))


def _both(bench: Bench, params: str) -> dict[str, Argv]:
    return {"pyvmm": bench.pyvmm_linux(params), "qemu": bench.qemu_linux(params)}


def exits(bench: Bench) -> Figures:
    """CPU seconds an exit: how much more a run takes with more of them, divided by how many more."""
    counts = [int(path.suffix[1:]) for path in sorted(bench.directory.glob("stores.*"))]
    few, many = min(counts), max(counts)

    def measure(argv: Argv) -> float:
        more = cpu_seconds([*argv[:-1], f"{argv[-1]}.{many}"])
        less = cpu_seconds([*argv[:-1], f"{argv[-1]}.{few}"])
        return (more - less) / (many - few)

    programs = {}
    for access in ("stores", "loads"):
        image = str(bench.directory / access)
        programs[f"C, {access}"] = [str(bench.directory / "kvm_loop"), image]
        programs[f"pyvmm, {access}"] = bench.pyvmm(image)
    return bench.interleaved(measure, programs)


MEASURES = {"start-up": start_up, "whole-run": whole_run, "memory": memory, "exits": exits}


def seconds_to_end(argv: Argv) -> float:
    """How long a program takes that must succeed."""
    start = time.monotonic()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
    end = time.monotonic()
    if done.returncode:
        sys.exit(f"{' '.join(argv)}: exit status {done.returncode}")
    return end - start


def cpu_seconds(argv: Argv) -> float:
    """The CPU time, guest's included, of a program that must succeed.

    Where instructions are counted this repeats best: what a program waits for takes the time it takes there.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds_to_end(argv)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


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
        assert process.stdout is not None
        seen = b""
        while _PROMPT not in seen:
            part = os.read(process.stdout.fileno(), 4096)
            if not part:
                sys.exit(f"{' '.join(argv)} ended before the guest's shell came up: {seen.decode()}")
            seen += part
        return without_guest_ram(Path(f"/proc/{process.pid}/smaps").read_text())


def without_guest_ram(smaps: str) -> int:
    """The sum of Rss, in bytes, over all mappings but the largest, which is the guest's RAM."""
    sizes = [int(line.split()[1]) for line in smaps.splitlines() if line.startswith("Size:")]
    resident = [int(line.split()[1]) for line in smaps.splitlines() if line.startswith("Rss:")]
    if max(sizes) < _MEM_MIB * 1024:
        sys.exit("no mapping is large enough for the guest's RAM")
    return (sum(resident) - resident[sizes.index(max(sizes))]) * 1024


@contextlib.contextmanager
def running(argv: Argv) -> Iterator[subprocess.Popen[bytes]]:
    """A program with pipes for its input and output, killed at the end of the block."""
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def host() -> dict[str, str]:
    """What the figures were measured on."""
    return {"kernel": platform.release(), "machine": platform.machine(), "python": platform.python_version()}


def main() -> None:
    job = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        shutil.copytree(job["bundle"], directory, dirs_exist_ok=True)
        bench = Bench(directory, job["rounds"])
        seconds_to_end(bench.pyvmm_linux(_QUIET + _POWER_OFF))  # what Python compiles once and keeps
        found = {measure: MEASURES[measure](bench) for measure in job["measures"]}
    json.dump({"host": host(), "figures": found}, sys.stdout)


if __name__ == "__main__":
    main()
