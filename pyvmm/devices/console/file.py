# SPDX-License-Identifier: Apache-2.0
"""A port of a virtio console that writes to a file."""

from __future__ import annotations

import os
import threading

from pyvmm.devices.console.ports import Port
from pyvmm.devices.virtio.chain import split, total
from pyvmm.errors import ConfigError
from pyvmm.hostfile import obstacle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.virtio.session import ActiveQueue

_MAX_IOV = 1024  # IOV_MAX: what writev takes at most
_FILE_PIECE = 1 << 20  # bytes that one job of a worker writes
_LAST_PIECE = 64 << 20  # bytes that are written for a driver that is going: what a guest's end may cost


class FilePort(Port):
    """A port whose output is appended to the file at ``path``, made when it is not there; it has no input.

    When writing fails the guest finds the port closed. Raises ConfigError.
    """

    def __init__(self, name: str, path: str, what: str = "") -> None:
        super().__init__(name)
        self._writing: _Append | None = None  # by a worker
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
            job = self._writing = _Append(self._fd, split(views, _FILE_PIECE)[0])
            self._session.submit(job.run, lambda _: self._written(job))
        return 0

    def finish(self) -> None:
        """See Port. The end of the driver waits for the job."""
        if self._output is None or self._session is None or not self.open:
            return
        before, rest = self._writing, self._output.drain()
        if before is not None:
            rest = split(rest, total(before.views))[1]
        if rest:
            last = _Append(self._fd, split(rest, _LAST_PIECE)[0], before)
            self._session.submit(last.run, lambda _: None)

    def _written(self, job: _Append) -> None:
        if job is not self._writing or self._output is None:
            return  # the queue was reset meanwhile
        self._writing = None
        if job.complete:
            self._output.taken(total(job.views))
            self.work_output()
        else:
            self.open = False
            self._on_change()

    def close(self) -> None:
        """See Port."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def check_path(path: str, what: str) -> None:
    """Raise ConfigError for what cannot be appended to, as far as that shows without making it."""
    if problem := obstacle(path):
        raise ConfigError(f"{what}: cannot append to {path}: {problem}.")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ConfigError(f"{what}: {path} is not a file that can be appended to; name one that is.")


def _open_to_append(path: str, what: str) -> int:
    check_path(path, what)
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ConfigError(f"{what}: cannot append to {path}: {error.strerror}.") from error


class _Append:
    """A worker's job: to write ``views`` after those of ``before``, a job that was submitted earlier."""

    def __init__(self, fd: int, views: list[memoryview], before: _Append | None = None) -> None:
        self.views = views
        self.complete = False
        self._fd = fd
        self._before = before
        self._ended = threading.Event()

    def run(self) -> None:
        """Write everything, and set ``complete``; not when the host cannot."""
        try:
            if self._before is None or self._before.wait():
                self._write()
        finally:
            self._ended.set()

    def wait(self) -> bool:
        """Whether everything was written, once it is known."""
        self._ended.wait()
        return self.complete

    def _write(self) -> None:
        rest = self.views
        try:
            while rest:
                rest = split(rest, os.writev(self._fd, rest[:_MAX_IOV]))[1]
        except OSError:
            return
        self.complete = True
