# SPDX-License-Identifier: Apache-2.0
"""Where the trace goes: stderr, or ``--trace-out FILE``.

Lines come from vCPU threads, some with a device's lock held, and must not wait for a reader: a thread of its
own writes them. What a reader is too slow for is dropped, and counted.
"""

from __future__ import annotations

import os
import sys
import threading

from pyvmm.cli.say import say
from pyvmm.console.output import ConsoleWriter

_PATIENCE = 2.0  # seconds in which the reader must take something, once the run is over


class TraceOutput:
    """Costs nothing until the first line."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._fd = 2
        self._end = "\r\n" if path is None and sys.stderr.isatty() else "\n"
        self._lock = threading.Lock()
        self._writer: ConsoleWriter | None = None
        self._dropped = 0

    def open(self) -> None:
        """Begin the file, now that the machine can be built. Raises ConfigError."""
        if self._path is not None:
            from pyvmm import hostfile

            self._fd = hostfile.create("The trace", self._path)

    def show(self, line: str) -> None:
        """Take a line. From any thread; never waits."""
        with self._lock:
            writer = self._writer or self._start()
        if writer.full:
            self._dropped += 1
        else:
            writer.write((line + self._end).encode())

    def _start(self) -> ConsoleWriter:
        self._writer = ConsoleWriter(lambda _line: None, lambda error: say(f"the trace ends here: {error}"))
        self._writer.add_output(self._fd, lambda error: say(f"the trace ends here: {error.strerror}"))
        return self._writer

    def close(self) -> None:
        """Write out what there is, as far as somebody reads it."""
        done = self._writer is None or self._writer.close(patience=_PATIENCE)
        if self._path is not None and done:
            os.close(self._fd)

    def losses(self) -> list[str]:
        """What to say about lines that were dropped."""
        return (
            [f"{self._dropped} lines of the trace were dropped: its reader was too slow"]
            if self._dropped
            else []
        )
