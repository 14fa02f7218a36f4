# SPDX-License-Identifier: Apache-2.0
"""The files that a guest under test leaves: one folder a guest, kept or removed after its test."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pyvmm.testing.config import GuestConfig

CONSOLE = "console.log"
SAID = "pyvmm.log"
EVENTS = "events.jsonl"
DTB = "machine.dtb"
CONFIG = "config.json"
TRACE = "trace.txt"
_NAME_LIMIT = 120
_LINE_LIMIT = 512  # of the trace's


def folder_name(nodeid: str) -> str:
    """A test's id as the name of a folder."""
    path, _, rest = nodeid.partition("::")
    name = re.sub(r"[^A-Za-z0-9._=-]+", "-", f"{Path(path).stem}.{rest}" if rest else path).strip("-.")
    return name[:_NAME_LIMIT] or "test"


def new_folder(base: Path, nodeid: str) -> Path:
    """A folder of its own for a test below ``base``, also when the test runs again."""
    name = folder_name(nodeid)
    base.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = base / (name if number == 1 else f"{name}.{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
            continue
        return path


def remove(folder: Path) -> None:
    """Remove a folder of artifacts, and those above it that are empty then."""
    shutil.rmtree(folder, ignore_errors=True)
    remove_empty(folder.parent)


def remove_empty(folder: Path) -> None:
    """Remove ``folder`` when nothing is in it."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def write_config(folder: Path, config: GuestConfig, words: Sequence[str], where: str) -> None:
    """Say what the guest was: its nouns, and the command that runs it again by hand."""
    content = {"where": where, "config": config.values(), "command": ["pyvmm", *words]}
    (folder / CONFIG).write_text(json.dumps(content, indent=2, default=str) + "\n")


@contextlib.contextmanager
def events(folder: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Writes events, one line each, as they come."""
    with (folder / EVENTS).open("w", buffering=1) as file:
        yield lambda event: print(json.dumps(event), file=file)


def trace_tail(folder: Path, count: int = 20) -> list[str]:
    """The last lines of a guest's trace; none when it has no trace."""
    with contextlib.suppress(OSError), (folder / TRACE).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - count * _LINE_LIMIT))
        return file.read().decode("utf-8", "replace").splitlines()[-count:]
    return []


def listing(folder: Path) -> list[str]:
    """The artifacts of a folder, as paths from the working directory when they are below it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    return [os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path) for path in paths]
