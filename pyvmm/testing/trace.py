# SPDX-License-Identifier: Apache-2.0
"""Counting the events of a guest's trace, also between two moments of a test."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyvmm.errors import ConfigError
from pyvmm.testing import artifacts
from pyvmm.testing.errors import GuestTimeout

if TYPE_CHECKING:
    from pyvmm.testing.vm import Vm

ALL_KINDS = "mmio,sbi,irq"
_LINE = re.compile(r"\[ *([0-9.]+)\] (?!mark )(\S+) +([^. ]+)\.(\S+) (\S+) ?(.*)")
_PIECE = 1 << 20
_POLL = 0.01  # seconds


class TraceEvent:
    """One event: ``time`` (seconds from the start), ``kind`` (mmio, sbi, irq), ``source`` (cpu0, irq),
    ``device``, ``name`` (of the register, SBI call or wire), ``action`` (read, write, call, raise, lower,
    pulse), and the ``rest`` of the line.
    """

    __slots__ = ("action", "device", "kind", "name", "rest", "source", "time")

    def __init__(self, match: re.Match[str]) -> None:
        seconds, self.source, self.device, self.name, self.action, self.rest = match.groups()
        self.time = float(seconds)
        if self.source == "irq":
            self.kind = "irq"
        else:
            self.kind = "sbi" if self.device == "sbi" else "mmio"


class _File:
    """The trace as far as it was written, which is a little behind the guest. Moments are offsets in it."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._path = vm.folder / artifacts.TRACE
        self._marks = 0
        self._read_to = 0

    def now(self) -> int:
        """This moment: all that happened before it has been written. Raises GuestTimeout."""
        self._marks += 1
        text = f"test-{self._marks}"
        if self._vm.mark_trace(text):
            return self._find(f"] mark   {text}\n".encode())
        return self._size()

    def _find(self, mark: bytes) -> int:
        """The end of a mark that was, or will be written; that of the file when the guest ended instead."""
        limit = self._vm.limit()
        deadline = time.monotonic() + limit
        with self._path.open("rb") as file:
            file.seek(self._read_to)
            kept = b""
            while True:
                ended = self._vm.end is not None
                kept += file.read(_PIECE)
                at = kept.find(mark)
                if at >= 0:
                    self._read_to += at + len(mark)
                    return self._read_to
                if len(kept) >= _PIECE:
                    self._read_to += len(kept) - len(mark)
                    kept = kept[-len(mark) :]
                elif ended:
                    return self._size()
                elif time.monotonic() > deadline:
                    raise GuestTimeout("the trace was not written", awaited="its last line", waited=limit)
                else:
                    time.sleep(_POLL)

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:  # it was not started
            return 0

    def read(self, start: int, end: int) -> str:
        """What is written between two moments."""
        if start == end:
            return ""
        with self._path.open("rb") as file:
            file.seek(start)
            return file.read(end - start).decode("utf-8", "replace")


class Section:
    """What was traced between two moments of a test, as a piece of the file."""

    def __init__(self, file: _File, start: int) -> None:
        self._file = file
        self._start = start
        self._end: int | None = None

    def events(
        self,
        kind: str | None = None,
        *,
        device: str | None = None,
        name: str | None = None,
        action: str | None = None,
    ) -> list[TraceEvent]:
        """The events with these properties; all of them when none is given."""
        wanted = {"kind": kind, "device": device, "name": name, "action": action}
        given = [(field, value) for field, value in wanted.items() if value is not None]
        return [
            event for event in self._read() if all(getattr(event, field) == value for field, value in given)
        ]

    def count(
        self,
        kind: str | None = None,
        *,
        device: str | None = None,
        name: str | None = None,
        action: str | None = None,
    ) -> int:
        """How many such events there are."""
        return len(self.events(kind, device=device, name=name, action=action))

    def _read(self) -> Iterator[TraceEvent]:
        end = self._file.now() if self._end is None else self._end
        for line in self._file.read(self._start, end).splitlines():
            match = _LINE.match(line)
            if match:
                yield TraceEvent(match)


class TraceReader(Section):
    """The trace of a guest: all of it, and its sections by name."""

    def __init__(self, vm: Vm) -> None:
        super().__init__(_File(vm), 0)
        self._sections: dict[str, Section] = {}

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[Section]:
        """What happens while the block runs is the section ``name``: ``trace[name]`` afterwards."""
        section = Section(self._file, self._file.now())
        self._sections[name] = section
        yield section
        section._end = self._file.now()

    def __getitem__(self, name: str) -> Section:
        if name not in self._sections:
            raise ConfigError(f"the trace has no section {name!r}")
        return self._sections[name]
