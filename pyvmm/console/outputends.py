# SPDX-License-Identifier: Apache-2.0
"""Where a machine's console output ends: a descriptor that somebody reads, and a log file."""

from __future__ import annotations

import os
import select
from errno import EIO, EPIPE

from pyvmm.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.console.output import ConsoleWriter
    from pyvmm.eventloop import EventLoop


class OutputEnds:
    """Both of them, either of which may be missing.

    ``on_gone`` hears when the descriptor has lost its reader, ``on_error`` of any other error on it, ``warn``
    of a log that cannot be written any more. All are called on threads of the machine.
    """

    def __init__(
        self,
        writer: ConsoleWriter,
        fd: int | None,
        log: str | None,
        *,
        on_gone: Callable[[], None],
        on_error: Callable[[BaseException], None],
        warn: Callable[[str], None],
    ) -> None:
        self._writer = writer
        self._fd = fd
        self._log = log
        self._log_fd: int | None = None
        self._on_gone = on_gone
        self._on_error = on_error
        self._warn = warn
        if fd is not None:
            writer.add_output(fd, self._failed)

    def open_log(self) -> None:
        """Begin the log, which empties it. Raises ConfigError."""
        if self._log is not None:
            from pyvmm import hostfile

            self._log_fd = hostfile.create("The log", self._log)
            self._writer.add_output(self._log_fd, self._log_failed)

    def watch(self, loop: EventLoop) -> None:
        """Notice at once when a pipe loses its reader, not only at the next byte.

        On the loop's thread, after the input has been watched: they may be one descriptor.
        """
        if self._fd is None:
            return
        try:
            loop.watch(self._fd, self._event, 0)
        except (PermissionError, FileExistsError):
            pass  # a file has no reader; a descriptor that is also the input is watched there

    def close(self, patience: float | None) -> None:
        """Write out what the guest printed. See ``ConsoleWriter.close``."""
        if self._writer.close(patience=patience) and self._log_fd is not None:
            os.close(self._log_fd)

    def _log_failed(self, error: OSError) -> None:
        self._warn(f"the log {self._log} ends here: {error.strerror}")

    def _failed(self, error: OSError) -> None:
        if error.errno in (EPIPE, EIO):
            self._on_gone()
        else:
            self._on_error(
                HostError(f"The console's output cannot be written: {error.strerror}.", error.errno or 0)
            )

    def _event(self, events: int) -> None:
        if events & (select.EPOLLERR | select.EPOLLHUP):
            self._on_gone()
