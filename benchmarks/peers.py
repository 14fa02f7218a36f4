# SPDX-License-Identifier: Apache-2.0
"""What pyvmm is measured against: Debian's QEMU for riscv64, and a loop of KVM_RUN in C."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from pyvmm.errors import HostError
from pyvmm.lab import elf, store
from pyvmm.lab.packages import unpack
from pyvmm.lab.pins import Request
from pyvmm.lab.store import Progress, quiet

REQUEST = Request("benchmarks/qemu", ("qemu-system-riscv",))
_QEMU = "usr/bin/qemu-system-riscv64"
_LIBRARIES = "usr/lib/riscv64-linux-gnu"
_LOADER = "usr/lib/ld-linux-riscv64-lp64d.so.1"
_LOOP_SOURCE = Path(__file__).with_name("kvm_loop.c")


def qemu(progress: Progress = quiet) -> Path:
    """A directory with QEMU, the libraries it is linked to, and their loader, side by side.

    Its packages take 700 MB; the 47 MB that it loads are kept. ``manifest.json`` beside it
    says which packages those were.
    """

    def build(work: Path) -> None:
        with store.scratch(work) as temp:
            debs, found = REQUEST.fetch(temp, progress)
            unpack(debs, temp / "root")
            _keep_loaded(temp / "root", work / "qemu")
        store.write_json(work / "manifest.json", found)

    key = store.recipe_key(REQUEST, _QEMU, _LOADER)
    return store.build_once(f"benchmarks/qemu-{key}", build, progress) / "qemu"


def qemu_version() -> str:
    """The version of the Debian package that ``qemu`` was taken from."""
    packages = store.read_json(qemu().parent / "manifest.json")["packages"]
    return next(str(package["version"]) for package in packages if package["name"] == "qemu-system-riscv")


def kvm_loop() -> Path:
    """The C program of kvm_loop.c, linked statically for riscv64."""
    options = ["-target", "riscv64-linux-musl", "-static", "-O2", "-Wall", "-Wextra", "-Werror"]

    def build(work: Path) -> None:
        command = [sys.executable, "-m", "ziglang", "cc", *options, str(_LOOP_SOURCE), "-o"]
        done = subprocess.run([*command, str(work / "kvm_loop")], capture_output=True, text=True, check=False)
        if done.returncode:
            raise HostError(f"The C loop cannot be compiled: {done.stderr.strip()[-500:]}")

    key = store.recipe_key(options, _LOOP_SOURCE.read_bytes())
    return store.build_once(f"benchmarks/loop-{key}", build) / "kvm_loop"


def _keep_loaded(root: Path, target: Path) -> None:
    target.mkdir()
    names = elf.libraries([root / _QEMU], root / _LIBRARIES)
    for path in (_QEMU, _LOADER, *(f"{_LIBRARIES}/{name}" for name in sorted(names))):
        shutil.copy(root / path, target)
