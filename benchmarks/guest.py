# SPDX-License-Identifier: Apache-2.0
"""A guest that runs, and the shell on its console: for the RISC-V host, standard library only."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping

from benchmarks.programs import Argv, running

PROMPT = b"~ # "
_PATIENCE = 120  # seconds for one command; only a guest that hangs makes anybody wait so long
_ROOM = 1 << 16


class Guest:
    """What is typed into a guest's console, and what comes back. Ends the measurement when it does not."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.pid = process.pid
        self._name = str(process.args)
        self._input = process.stdin.fileno()
        self._output = process.stdout.fileno()
        self._commands = 0

    def read_some(self) -> bytes:
        """What there is to read, at least a byte."""
        ready, _, _ = select.select([self._output], [], [], _PATIENCE)
        part = os.read(self._output, _ROOM) if ready else b""
        if not part:
            sys.exit(f"{self._name}: nothing more comes from the guest")
        return part

    def read_until(self, wanted: bytes) -> bytes:
        """All output up to and with ``wanted``, and what came with it."""
        seen = bytearray()
        searched = 0
        while seen.find(wanted, searched) < 0:
            searched = max(0, len(seen) - len(wanted))
            seen += self.read_some()
        return bytes(seen)

    def send(self, line: str) -> None:
        """Type a line."""
        os.write(self._input, line.encode() + b"\n")

    def run(self, command: str) -> str:
        """Run a shell command that must succeed; returns what it printed, after its own echo."""
        self._commands += 1
        # The quotes keep the marker out of the command's own echo.
        self.send(f"{command}; echo DONE''{self._commands}:$?.")
        seen = self.read_until(b"DONE%d:" % self._commands).decode(errors="replace")
        while not (status := re.search(rf"DONE{self._commands}:(\d+)\.", seen)):
            seen += self.read_until(b".").decode(errors="replace")
        if status[1] != "0":
            sys.exit(f"{self._name}: {command!r} failed in the guest: {seen}")
        return seen[: status.start()].rpartition(f"DONE''{self._commands}:$?.")[2]


@contextlib.contextmanager
def booted(argv: Argv) -> Iterator[Guest]:
    """A guest with its shell up, killed at the end of the block."""
    with running(argv) as process:
        guest = Guest(process)
        guest.read_until(PROMPT)
        yield guest


@contextlib.contextmanager
def all_booted(programs: Mapping[str, Argv]) -> Iterator[dict[str, Guest]]:
    """Guests side by side: while one is measured, the others idle."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(booted(argv)) for name, argv in programs.items()}
