# SPDX-License-Identifier: Apache-2.0
"""A port of a virtio console that writes to a file."""

from __future__ import annotations

import os
import stat

from pyvmm.devices.console.ports import Port
from pyvmm.devices.virtio.chain import split
from pyvmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.virtio.session import ActiveQueue

_MAX_IOV = 1024  # IOV_MAX: what writev takes at most
_FILE_PIECE = 1 << 20  # bytes that one job of a worker writes


class FilePort(Port):
    """A port whose output is appended to the file at ``path``, made when it is not there; it has no input.

    When writing fails the guest finds the port closed. Raises ConfigError.
    """

    def __init__(self, name: str, path: str, what: str = "") -> None:
        super().__init__(name)
        self._writing: list[memoryview] | None = None  # by a worker
        self._fd = _open_to_append(path, what or f"Port {name!r}")
        self.open = True

    def detach(self) -> None:
        """See Port."""
        super().detach()
        self._writing = None

    def forget(self, queue: ActiveQueue) -> None:
        """See Port."""
        super().forget(queue)
        if queue is not self._input:
            self._writing = None

    def send(self, views: list[memoryview]) -> int:
        """See Port."""
        if self.open and self._writing is None and self._session is not None:
            fd, piece = self._fd, split(views[:_MAX_IOV], _FILE_PIECE)[0]
            self._writing = piece
            self._session.submit(lambda: _write(fd, piece), lambda count: self._written(piece, count))
        return 0

    def _written(self, piece: list[memoryview], count: int) -> None:
        if piece is not self._writing or self._output is None:
            return  # the queue was reset meanwhile
        self._writing = None
        if count:
            self._output.taken(count)
            self.work_output()
        else:
            self.open = False
            self._on_change()

    def close(self) -> None:
        """See Port."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def _open_to_append(path: str, what: str) -> int:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise ConfigError(f"{what}: cannot append to {path}: {error.strerror}.") from error
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise ConfigError(f"{what}: {path} is not a file that can be appended to.")


def _write(fd: int, views: list[memoryview]) -> int:
    """Bytes written; 0 when the host cannot."""
    try:
        return os.writev(fd, views)
    except OSError:
        return 0
