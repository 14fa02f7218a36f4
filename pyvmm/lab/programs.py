# SPDX-License-Identifier: Apache-2.0
"""C for guests and the lab host, which have no compiler: built here, by zig. All programs are static."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyvmm
from pyvmm.errors import ConfigError, HostError
from pyvmm.lab import store

_FLAGS = (
    "-target",
    "riscv64-linux-musl",
    "-static",
    "-std=gnu17",
    "-Os",
    "-s",
    "-Wall",
    "-Wextra",
    "-Werror",
)
# No libc, no Python: pyvmm/_native_python.h says what there will be.
_NATIVE_FLAGS = (*("-shared", "-fPIC", "-std=gnu17", "-O2", "-s"), "-Wall", "-Wextra", "-Werror")
# No libc, but its headers and Linux's, which zig brings for every machine.
_FREESTANDING_FLAGS = (
    "-nostdlib",
    "-fno-builtin",
    "-fno-stack-protector",
    "-fno-sanitize=all",
    "-Wl,--build-id=none",
)
_KERNEL_HEADERS = {"riscv64": "riscv", "x86_64": "x86"}


def freestanding(sources: list[Path], target: Path, machine: str = "riscv64") -> None:
    """Compile a program that brings its own ground, with the headers beside ``sources`` and musl's.

    The same sources give the same bytes. Raises ConfigError without zig, HostError when they do not compile.
    """
    headers = _ziglang() / "lib/libc/include"
    kernel = _KERNEL_HEADERS[machine]
    folders = (f"{machine}-linux-musl", "generic-musl", f"{kernel}-linux-any", "any-linux-any")
    flags = ["-target", f"{machine}-linux-musl", *_FLAGS[2:], *_FREESTANDING_FLAGS]
    flags += [word for name in folders for word in ("-isystem", str(headers / name))]
    flags += [f"-I{folder}" for folder in sorted({str(source.parent) for source in sources})]
    _compile(sources, target, flags)


def native(machine: str = "riscv64") -> Path:
    """A directory with pyvmm's native module as ``pyvmm/_native.abi3.so``, for any Python of that machine.

    Built once for every content. Raises ConfigError without zig, HostError when it does not compile.
    """
    package = Path(pyvmm.__file__).parent
    header, sources = package / "_native_python.h", sorted(package.glob("_native_*.c"))
    flags = [
        "-target",
        f"{machine}-linux-musl",
        *_NATIVE_FLAGS,
        *_FREESTANDING_FLAGS,
        "-include",
        str(header),
    ]

    def build(work: Path) -> None:
        (work / "pyvmm").mkdir()
        _compile(sources, work / "pyvmm/_native.abi3.so", flags)

    contents = [path.read_bytes() for path in (*sorted(package.glob("_native_*.h")), *sources)]
    return store.build_once(f"native/{store.recipe_key(flags, contents)}", build)


def programs(sources: Path) -> Path:
    """A directory with one program for every .c file in ``sources``, named after it.

    Built once for every content. Raises ConfigError when that needs zig and it is not installed, HostError
    when a file does not compile.
    """
    files = sorted([*sources.glob("*.c"), *sources.glob("*.h")])
    key = store.recipe_key(_FLAGS, [(path.name, path.read_bytes()) for path in files])
    return store.build_once(f"programs/{key}", lambda work: _build(files, work))


def _build(files: list[Path], work: Path) -> None:
    for source in files:
        if source.suffix == ".c":
            _compile([source], work / source.stem, _FLAGS)


def _ziglang() -> Path:
    found = importlib.util.find_spec("ziglang")
    if found is None or found.origin is None:
        raise ConfigError("C programs for guests are built by zig; install ziglang for this Python.")
    return Path(found.origin).parent


def _compile(sources: Sequence[Path], target: Path, flags: Sequence[str]) -> None:
    _ziglang()
    command = [sys.executable, "-m", "ziglang", "cc", *flags, *map(str, sources), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise HostError(f"{sources[0]} does not compile: {done.stderr.strip()}")
