# SPDX-License-Identifier: Apache-2.0
"""The programs that are measured, and in which order: for the RISC-V host, standard library only."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

Argv = list[str]
Figures = dict[str, list[float]]

MEM_MIB = 256
FULL_MEM_MIB = 512  # what Linux 7 needs to unpack the initramfs with modules
# How much of its log the guest's kernel prints, and through what.
QUIET = "console=ttyS0 quiet"
QUIET_VIRTIO = "console=hvc0 quiet"


class Bench:
    """The programs to measure, in ``directory``, and how often to do it."""

    def __init__(self, directory: Path, rounds: int) -> None:
        self.directory = directory
        self.rounds = rounds

    def pyvmm(self, *arguments: str, mem: int = MEM_MIB) -> Argv:
        """``pyvmm run`` with one CPU."""
        return [
            *(sys.executable, "-m", "pyvmm", "run", "--host=local", "--quiet"),
            *(f"--mem={mem}M", *arguments),
        ]

    def pyvmm_linux(self, params: str, *arguments: str, full: bool = False) -> Argv:
        """``pyvmm run`` with Debian's kernel and busybox; ``full``: also with modules and programs."""
        return self.pyvmm(
            f"--kernel={self.directory / 'Image'}",
            f"--initrd={self._initrd(full)}",
            f"--params={params}",
            *arguments,
            mem=_mem(full),
        )

    def qemu_linux(self, params: str, *devices: str, full: bool = False) -> Argv:
        """The same guest under QEMU with KVM; without devices that pyvmm does not have, either."""
        root = self.directory / "qemu"
        return [
            str(root / "ld-linux-riscv64-lp64d.so.1"), "--library-path", str(root),
            str(root / "qemu-system-riscv64"), "-L", str(root), "-no-reboot",
            *devices,
            "-M", "virt", "-accel", "kvm", "-smp", "1", "-m", f"{_mem(full)}M",
            "-kernel", str(self.directory / "Image"), "-initrd", str(self._initrd(full)),
            "-append", params,
        ]  # fmt: skip

    def interleaved(self, measure: Callable[[Argv], float], programs: Mapping[str, Argv]) -> Figures:
        """Every program once a round, so that what slows the machine for a while slows them all."""
        return interleaved(self.rounds, {name: bind(measure, argv) for name, argv in programs.items()})

    def _initrd(self, full: bool) -> Path:
        return self.directory / ("initrd.full" if full else "initrd")


PYVMM_SERIAL, PYVMM_VIRTIO = ("--console=serial",), ("--console=virtio",)
_QEMU_BARE = ("-nodefaults", "-display", "none")
QEMU_SERIAL = (*_QEMU_BARE, "-serial", "stdio")
QEMU_VIRTIO = (
    *_QEMU_BARE, "-chardev", "stdio,id=console",
    "-device", "virtio-serial-pci", "-device", "virtconsole,chardev=console",
)  # fmt: skip


def _mem(full: bool) -> int:
    return FULL_MEM_MIB if full else MEM_MIB


def bind(measure: Callable[[Argv], float], argv: Argv) -> Callable[[], float]:
    """The measurement of this program."""
    return lambda: measure(argv)


def interleaved(rounds: int, runs: Mapping[str, Callable[[], float]]) -> Figures:
    """Every measurement once a round, with the figures that they return."""
    found: Figures = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(run())
    return found


def seconds_to_end(argv: Argv) -> float:
    """How long a program takes that must succeed."""
    start = time.monotonic()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
    end = time.monotonic()
    if done.returncode:
        sys.exit(f"{' '.join(argv)}: exit status {done.returncode}")
    return end - start


@contextlib.contextmanager
def running(argv: Argv) -> Iterator[subprocess.Popen[bytes]]:
    """A program with pipes for its input and output, killed at the end of the block."""
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
