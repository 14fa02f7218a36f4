# SPDX-License-Identifier: Apache-2.0
"""Static C programs for guests and the lab host, which have no compiler: built here, by zig."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

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


def programs(sources: Path) -> Path:
    """A directory with one program for every .c file in ``sources``, named after it.

    Built once for every content. Raises ConfigError when that needs zig and it is not installed, HostError
    when a file does not compile.
    """
    files = sorted([*sources.glob("*.c"), *sources.glob("*.h")])
    key = store.recipe_key(_FLAGS, [(path.name, path.read_bytes()) for path in files])
    return store.build_once(f"programs/{key}", lambda work: _build(files, work))


def _build(files: list[Path], work: Path) -> None:
    if not importlib.util.find_spec("ziglang"):
        raise ConfigError("C programs for guests are built by zig; install ziglang for this Python.")
    for source in files:
        if source.suffix == ".c":
            _compile(source, work / source.stem)


def _compile(source: Path, target: Path) -> None:
    command = [sys.executable, "-m", "ziglang", "cc", *_FLAGS, str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise HostError(f"{source} does not compile: {done.stderr.strip()}")
