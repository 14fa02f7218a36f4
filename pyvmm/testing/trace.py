# SPDX-License-Identifier: Apache-2.0
"""Counting the events of a guest's trace, also between two moments of a test."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

from pyvmm.errors import ConfigError

ALL_KINDS = "mmio,sbi,irq"
_LINE = re.compile(r"\[ *([0-9.]+)\] (\S+) +([^. ]+)\.(\S+) (\S+) ?(.*)")
_QUIET = 0.2  # seconds without a new line after which the trace has been written out
_PATIENCE = 3.0


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


class Section:
    """What was traced between two moments of a test, as a piece of the file."""

    def __init__(self, path: Path, start: int) -> None:
        self._path = path
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
        end = _settled(self._path) if self._end is None else self._end
        if not end:
            return
        with self._path.open("rb") as file:
            file.seek(self._start)
            text = file.read(end - self._start).decode("utf-8", "replace")
        for line in text.splitlines():
            match = _LINE.match(line)
            if match:
                yield TraceEvent(match)


class TraceReader(Section):
    """The trace of a guest: all of it, and its sections by name."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, 0)
        self._sections: dict[str, Section] = {}

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[Section]:
        """What happens while the block runs is the section ``name``: ``trace[name]`` afterwards."""
        section = Section(self._path, _settled(self._path))
        self._sections[name] = section
        yield section
        section._end = _settled(self._path)

    def __getitem__(self, name: str) -> Section:
        if name not in self._sections:
            raise ConfigError(f"the trace has no section {name!r}")
        return self._sections[name]


def _settled(path: Path) -> int:
    """The size of the file once pyvmm, which writes it a little behind the guest, has caught up.

    A guest that never rests is waited for no longer than ``_PATIENCE``.
    """
    limit = time.monotonic() + _PATIENCE
    size = -1
    while size != (size := _size(path)) and time.monotonic() < limit:
        time.sleep(_QUIET)
    return size


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
