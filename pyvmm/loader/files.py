# SPDX-License-Identifier: Apache-2.0
"""A file that the user named, open for reading, with errors that say what to do about it."""

from __future__ import annotations

import os

from pyvmm.errors import ConfigError, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class GuestMemory(Protocol):
        """What loading needs of guest memory."""

        def write(self, gpa: int, data: bytes) -> None:
            """Copy ``data`` to ``gpa``."""

        def read_file_into(self, gpa: int, fd: int, offset: int, size: int) -> int:
            """Read up to ``size`` bytes of ``fd`` from ``offset`` to ``gpa``; returns how many came.

            Raises HostError when reading fails.
            """


_CHUNK = 1 << 20
_S_IFMT, _S_IFREG, _S_IFDIR = 0o170000, 0o100000, 0o040000  # inode(7), without importing stat


class File:
    """A regular file of ``size`` bytes. Errors name it by ``what`` (``kernel``, ``initrd``) and ``path``."""

    __slots__ = ("fd", "path", "size", "what")

    def __init__(self, what: str, path: str, fd: int, size: int) -> None:
        self.what = what
        self.path = path
        self.fd = fd
        self.size = size

    @classmethod
    def open(cls, what: str, path: str) -> File:
        """Open ``path``. Raises ConfigError unless it is a readable, regular and non-empty file."""
        try:
            # Not blocking: opening a FIFO would wait for its writer.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise ConfigError(_cannot_open(what, path, error)) from error
        status = os.fstat(fd)
        file = cls(what, path, fd, status.st_size)
        kind = status.st_mode & _S_IFMT
        if kind == _S_IFREG and file.size:
            return file
        file.close()
        if kind == _S_IFREG:
            raise file.error("is empty; was it copied completely?")
        if kind == _S_IFDIR:
            raise file.error(f"is a directory; name the {what} file in it.")
        raise file.error("is not a regular file; copy what it gives to a file first.")

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def error(self, problem: str) -> ConfigError:
        """The sentence made of the file's name and ``problem``, to be raised."""
        return ConfigError(f"The {self.what} {self.path} {problem}")

    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``, fewer only at the end. Raises HostError."""
        try:
            return os.pread(self.fd, size, offset)
        except OSError as error:
            raise HostError(
                f"The {self.what} {self.path} cannot be read: {error.strerror}.", error.errno or 0
            ) from error

    def copy_to(self, memory: GuestMemory, gpa: int, offset: int, size: int) -> None:
        """Read ``size`` bytes from ``offset`` into guest memory. Raises HostError."""
        try:
            done = memory.read_file_into(gpa, self.fd, offset, size)
        except HostError as error:
            raise HostError(f"The {self.what} {self.path} cannot be loaded: {error}", error.errno) from error
        if done < size:
            raise self.error("became shorter while it was being read; start again when it is complete.")

    def unnamed(self) -> File:
        """An empty file in memory that goes by this one's name in errors."""
        return File(self.what, self.path, os.memfd_create(self.what), 0)

    def append(self, data: bytes) -> None:
        """Add ``data`` at the end."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]
        self.size += len(data)

    def copy_of(self, offset: int, size: int) -> int:
        """A descriptor of a file in memory, at its start, that holds ``size`` bytes from ``offset``."""
        copy = self.unnamed()
        while copy.size < size and (data := self.read(offset + copy.size, min(_CHUNK, size - copy.size))):
            copy.append(data)
        os.lseek(copy.fd, 0, os.SEEK_SET)
        return copy.fd


def _cannot_open(what: str, path: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"The {what} {path} does not exist; check the path."
    if isinstance(error, PermissionError):
        return f"The {what} {path} may not be read by this user; check its permissions."
    if isinstance(error, OSError):
        return f"The {what} {path} cannot be opened: {error.strerror}."
    return f"The {what} {path!r} cannot be opened: {error}."
