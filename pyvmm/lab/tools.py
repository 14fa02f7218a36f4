# SPDX-License-Identifier: Apache-2.0
"""Programs of Debian 13 that run on the machine without being installed: QEMU, ssh, zstd, Python, dtc, ...

They are unpacked into the cache and started through their own dynamic loader with their own libraries, so
they need neither root nor a chroot, and do not care what the machine has.
"""

from __future__ import annotations

import platform
from pathlib import Path

from pyvmm.errors import ConfigError
from pyvmm.lab import store
from pyvmm.lab.packages import unpack
from pyvmm.lab.pins import Request
from pyvmm.lab.store import Progress, quiet

PYTHON = "3.13"  # what pins.SUITE has, in the lab host too: byte code made by the one runs in the other
_LIBRARIES = "usr/lib/x86_64-linux-gnu"

# Groups are fetched on first use: a user who only runs guests never downloads those that only tests need.
_GROUPS = {
    "host": (
        "qemu-system-riscv",
        "opensbi",
        "openssh-client",
        "zstd",
        f"python{PYTHON}-minimal",
        f"libpython{PYTHON}-stdlib",
    ),
    "dtc": ("device-tree-compiler",),
    "qemu-user": ("qemu-user",),
    "e2fsprogs": ("e2fsprogs", "libarchive13t64"),  # the library, which reads tar, is only recommended
}
REQUESTS = {name: Request(f"tools/{name}", names, architecture="amd64") for name, names in _GROUPS.items()}
_STATIC = ("qemu-user",)  # groups whose programs bring no loader, since they need none
_PROGRAMS = {
    "qemu-system-riscv64": "host",
    "ssh": "host",
    "ssh-keygen": "host",
    "zstd": "host",
    f"python{PYTHON}": "host",
    "dtc": "dtc",
    "fdtdump": "dtc",
    "fdtget": "dtc",
    "qemu-riscv64": "qemu-user",
    "mke2fs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
}


def command(program: str, progress: Progress = quiet) -> list[str]:
    """The argument vector that starts ``program`` (append its own arguments); downloads it on first use.

    Raises ConfigError for a program that is not among the tools or a machine they do not run on.
    """
    if program not in _PROGRAMS:
        raise ConfigError(f"{program} is not one of the lab's tools: {', '.join(sorted(_PROGRAMS))}.")
    root = group(_PROGRAMS[program], progress)
    path = root / ("usr/sbin" if _PROGRAMS[program] == "e2fsprogs" else "usr/bin") / program
    if _PROGRAMS[program] in _STATIC:
        return [str(path)]
    return [
        str(root / "lib64/ld-linux-x86-64.so.2"),
        "--library-path",
        str(root / _LIBRARIES),
        str(path),
    ]


def group(name: str, progress: Progress = quiet) -> Path:
    """The root directory of one group of tools, built on first use; its manifest lies beside the root."""
    key = store.recipe_key(REQUESTS[name])
    return (
        store.build_once(f"tools/{name}-{key}", lambda work: _build(name, work, progress), progress) / "root"
    )


def manifest(name: str) -> object:
    """What the group was made of."""
    return store.read_json(group(name).parent / "manifest.json")


def qemu_environment() -> dict[str, str]:
    """What keeps QEMU from loading modules of another QEMU that the machine may have."""
    return {"QEMU_MODULE_DIR": str(group("host") / _LIBRARIES / "qemu")}


def _build(name: str, work: Path, progress: Progress) -> None:
    if platform.machine() != "x86_64":
        raise ConfigError(f"The lab runs on amd64 machines; this one is {platform.machine()}.")
    with store.scratch(work) as temp:
        debs, found = REQUESTS[name].fetch(temp, progress)
        unpack(debs, work / "root")
    store.write_json(work / "manifest.json", found)
