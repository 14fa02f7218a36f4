# SPDX-License-Identifier: Apache-2.0
"""What a guest prints: kept raw in a file with times, the end of it in memory, and handed to whoever expects.

Filled by one thread, read by others. Whatever the guest prints, memory is bounded.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from pyvmm.console.panic import PanicWatch
from pyvmm.testing.errors import visible

KEPT = 1 << 20
"""Bytes of output in memory."""
PENDING = 8 << 20
"""Bytes that wait to be expected; more than that forgets the oldest."""
FILE_LIMIT = 256 << 20
"""Bytes of the file; a guest may print for ever."""
_LINES = 2000
_LINE_LIMIT = 4096
_PANIC_GRACE = 5.0  # seconds for what Linux prints after a panic's first line, when no last line follows


class ConsoleLog:
    """The output of one guest. ``path`` is the file, ``live`` sees every piece as it comes.

    ``shown`` is whether its end may be told. Whatever becomes of file and ``live``, the output is taken:
    ``incomplete`` says why the file has not all of it.
    """

    def __init__(
        self, path: Path, live: Callable[[bytes], None] | None = None, *, shown: bool = True
    ) -> None:
        self.path = path
        self.panic = PanicWatch()
        self.banner = ""
        self.incomplete = ""
        self._live = live
        self._shown = shown
        self._file = path.open("wb")
        self._written = 0
        self._changed = threading.Condition()
        self._kept = bytearray()
        self._pending = bytearray()
        self._lines: deque[bytes] = deque(maxlen=_LINES)
        self._line = bytearray()
        self._at_start = True
        self._started = time.monotonic()
        self._panicked_at = 0.0
        self._ended = False

    def begin(self) -> None:
        """The guest starts now: times in the file count from here."""
        self._started = time.monotonic()

    def feed(self, data: bytes) -> None:
        """The guest printed ``data``."""
        if not self.incomplete:
            self._write(data)
        with self._changed:
            self._kept += data
            del self._kept[:-KEPT]
            self._pending += data
            del self._pending[:-PENDING]
            self._split(data)
            self._changed.notify_all()
        if self._live is not None:
            try:
                self._live(data)
            except (OSError, ValueError):  # nobody looks any more
                self._live = None

    def end(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            with contextlib.suppress(OSError):  # what could not be written still cannot
                self._file.close()

    def take(self, size: int, timeout: float | None, panic_ends: Callable[[], bool]) -> bytes | None:
        """Up to ``size`` bytes that nobody expected yet; None when none came in time, nothing at the end.

        The end is also a panic, once everything before it was taken, when ``panic_ends()``.
        """
        limit = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._pending:
                if self._ended or (panic_ends() and self.panicked):
                    return b""
                left = _PANIC_GRACE if limit is None else min(_PANIC_GRACE, limit - time.monotonic())
                if left <= 0:
                    return None
                self._changed.wait(left)
            data = bytes(self._pending[:size])
            del self._pending[:size]
            return data

    def wait_end(self, timeout: float, panic_ends: Callable[[], bool]) -> bool:
        """Wait until nothing more will come, or a panic when ``panic_ends()``; whether that happened."""
        limit = time.monotonic() + timeout
        with self._changed:
            while not (self._ended or (panic_ends() and self.panicked)):
                left = min(_PANIC_GRACE, limit - time.monotonic())
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def forget_pending(self) -> None:
        """What came so far is not to be expected any more."""
        with self._changed:
            self._pending.clear()

    @property
    def panicked(self) -> bool:
        """Whether Linux panicked and has said what it has to say about it."""
        if self.panic.ended:
            return True
        return self.panic.seen and (self._ended or time.monotonic() - self._panicked_at >= _PANIC_GRACE)

    @property
    def raw(self) -> bytes:
        """The end of the output, as it came."""
        with self._changed:
            return bytes(self._kept)

    def lines(self) -> list[str]:
        """The last lines, without their ends; what is no UTF-8 is replaced."""
        with self._changed:
            lines = [*self._lines, bytes(self._line)] if self._line else list(self._lines)
        return [line.decode("utf-8", "replace").rstrip("\r") for line in lines]

    def tail(self, count: int = 40) -> list[str]:
        """The last lines as they may be shown; none when none are to be."""
        return [visible(line) for line in self.lines()[-count:]] if self._shown else []

    def _split(self, data: bytes) -> None:
        self._line += data
        if b"\n" not in data and len(self._line) <= _LINE_LIMIT:
            return
        *lines, rest = bytes(self._line).split(b"\n")
        if len(rest) > _LINE_LIMIT:
            lines.append(rest)
            rest = b""
        self._line = bytearray(rest)
        for line in lines:
            self._finish(line[:_LINE_LIMIT])

    def _finish(self, line: bytes) -> None:
        self._lines.append(line)
        if not self.panic.seen:
            self.panic.feed(line)
            self._panicked_at = time.monotonic()
        elif not self.panic.ended:
            self.panic.feed(line)
        if not self.banner and b"Linux version " in line:
            self.banner = visible(line.decode("utf-8", "replace")).partition("Linux version ")[2][:300]

    def _write(self, data: bytes) -> None:
        stamp = f"[{time.monotonic() - self._started:12.6f}] ".encode()
        body = data[:-1].replace(b"\n", b"\n" + stamp) + data[-1:]
        if self._at_start:
            body = stamp + body
        self._at_start = data.endswith(b"\n")
        self._written += len(body)
        if self._written > FILE_LIMIT:
            self.incomplete = "the guest printed more than is kept"
            body += b"\n(%s)\n" % self.incomplete.encode()
        try:
            self._file.write(body)
            self._file.flush()
        except OSError as error:
            self.incomplete = str(error.strerror)
