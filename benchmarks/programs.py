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
from typing import TypeVar

Argv = list[str]
Figures = dict[str, list[float]]
Value = TypeVar("Value")

MEM_MIB = 256
FULL_MEM_MIB = 512  # what Linux 7 needs to unpack the initramfs with modules
SERIAL, VIRTIO = "serial", "virtio"  # consoles
PCI, MMIO = "pci", "mmio"  # transports of virtio
# How much of its log the guest's kernel prints, and through what.
QUIET = {SERIAL: "console=ttyS0 quiet", VIRTIO: "console=hvc0 quiet"}
_QEMU_BARE = ("-nodefaults", "-display", "none")
QEMU_CONSOLES = {
    SERIAL: (*_QEMU_BARE, "-serial", "stdio"),
    VIRTIO: (
        *_QEMU_BARE, "-chardev", "stdio,id=console",
        "-device", "virtio-serial-pci", "-device", "virtconsole,chardev=console",
    ),
}  # fmt: skip
_QEMU_DISKS = {
    PCI: ("-device", "virtio-blk-pci,drive=disk"),
    # Without the first two words it is the transport of before virtio 1.0.
    MMIO: ("-global", "virtio-mmio.force-legacy=false", "-device", "virtio-blk-device,drive=disk"),
}


class Bench:
    """The programs to measure, in ``directory``, and how often to do it.

    ``aia``: the host's KVM has an AIA. pyvmm uses it by itself, and the others are told to.
    """

    def __init__(self, directory: Path, rounds: int, *, aia: bool = False) -> None:
        self.directory = directory
        self.rounds = rounds
        self._machine = "virt,aia=aplic-imsic" if aia else "virt"
        lkvm = directory / "lkvm"
        self._lkvm = lkvm if lkvm.exists() else None

    def guests(self, params: str, console: str, *, disk: str = "") -> dict[str, Argv]:
        """The same guest, of Debian's kernel and busybox, under each program there is.

        ``disk``: the transport of a disk, which is that program's ``image``; then with modules and programs.
        """
        found = {
            "pyvmm": self.pyvmm_linux(params, f"--console={console}", *self._disk(disk), full=bool(disk)),
            "qemu": self.qemu_linux(params, *QEMU_CONSOLES[console], *self._qemu_disk(disk), full=bool(disk)),
        }
        if self._lkvm:
            found["lkvm"] = self._lkvm_linux(params, console, disk)
        return found

    def image(self, program: str) -> Path:
        """The file of that program's disk."""
        return self.directory / f"{program}.img"

    def pyvmm(self, *arguments: str, mem: int = MEM_MIB) -> Argv:
        """``pyvmm run`` with one CPU; ``mem`` is in MiB."""
        return [
            *(sys.executable, "-m", "pyvmm", "run", "--host=local", "--quiet"),
            *(f"--mem={mem}M", *arguments),
        ]

    def pyvmm_linux(self, params: str, *arguments: str, full: bool = False, mem: int = 0) -> Argv:
        """``pyvmm run`` with Debian's kernel and busybox; ``full``: also with modules and programs."""
        return self.pyvmm(
            f"--kernel={self.kernel}",
            f"--initrd={self.initrd(full)}",
            f"--params={params}",
            *arguments,
            mem=mem or _mem(full),
        )

    def qemu_linux(self, params: str, *devices: str, full: bool = False) -> Argv:
        """The same guest under QEMU with KVM; without devices that pyvmm does not have, either."""
        root = self.directory / "qemu"
        return [
            str(root / "ld-linux-riscv64-lp64d.so.1"), "--library-path", str(root),
            str(root / "qemu-system-riscv64"), "-L", str(root), "-no-reboot",
            *devices,
            "-M", self._machine, "-accel", "kvm", "-smp", "1", "-m", f"{_mem(full)}M",
            "-kernel", str(self.kernel), "-initrd", str(self.initrd(full)),
            "-append", params,
        ]  # fmt: skip

    def interleaved(
        self, measure: Callable[[Argv], Value], programs: Mapping[str, Argv]
    ) -> dict[str, list[Value]]:
        """Every program once a round, so that what slows the machine for a while slows them all."""
        return interleaved(self.rounds, {name: bind(measure, argv) for name, argv in programs.items()})

    @property
    def kernel(self) -> Path:
        """Debian's kernel."""
        return self.directory / "Image"

    def initrd(self, full: bool = False) -> Path:
        """busybox; ``full``: also modules and programs."""
        return self.directory / ("initrd.full" if full else "initrd")

    def _disk(self, transport: str) -> Argv:
        return [f"--disk={self.image('pyvmm')}", f"--virtio-transport={transport}"] if transport else []

    def _qemu_disk(self, transport: str) -> Argv:
        if not transport:
            return []
        return ["-drive", f"if=none,id=disk,format=raw,file={self.image('qemu')}", *_QEMU_DISKS[transport]]

    def _lkvm_linux(self, params: str, console: str, transport: str) -> Argv:
        full = bool(transport)
        disk = ["--disk", str(self.image("lkvm")), "--virtio-transport", transport] if transport else []
        return [
            str(self._lkvm), "run", "--nodefaults", "--cpus", "1", "--mem", str(_mem(full)),
            "--kernel", str(self.kernel), "--initrd", str(self.initrd(full)),
            "--console", console, "--params", params, *disk,
        ]  # fmt: skip


def _mem(full: bool) -> int:
    return FULL_MEM_MIB if full else MEM_MIB


def bind(measure: Callable[[Argv], Value], argv: Argv) -> Callable[[], Value]:
    """The measurement of this program."""
    return lambda: measure(argv)


def interleaved(rounds: int, runs: Mapping[str, Callable[[], Value]]) -> dict[str, list[Value]]:
    """Every measurement once a round, with the figures that they return."""
    found: dict[str, list[Value]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(run())
    return found


def seconds_to_end(argv: Argv, copies: int = 1) -> float:
    """How long a program takes that must succeed; of several copies at once, the slowest."""
    start = time.monotonic()
    processes = [
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) for _ in range(copies)
    ]
    statuses = [process.wait() for process in processes]
    end = time.monotonic()
    if any(statuses):
        sys.exit(f"{' '.join(argv)}: exit status {max(statuses, key=abs)}")
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
