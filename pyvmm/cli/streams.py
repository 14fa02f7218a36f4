# SPDX-License-Identifier: Apache-2.0
"""Reading and writing the standard streams, which others may share: a terminal, or a pipe of the shell.

Whoever has one of them too can make it non-blocking for all; these functions wait all the same.
"""

from __future__ import annotations

import os
import select

PIECE = 64 << 10
"""Bytes that are read at once."""


def read_some(fd: int) -> bytes:
    """What there is to read, as soon as there is something; nothing at the end. Raises OSError."""
    while True:
        try:
            return os.read(fd, PIECE)
        except BlockingIOError:
            _wait(fd, select.POLLIN)


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data``. Raises OSError."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            _wait(fd, select.POLLOUT)


def _wait(fd: int, events: int) -> None:
    poll = select.poll()
    poll.register(fd, events)
    poll.poll()
