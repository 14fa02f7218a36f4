# SPDX-License-Identifier: Apache-2.0
"""Byte-range locks, so that guest and host see each other's.

The guest's kernel settles what its own processes do to each other. To the host, every guest process that
holds locks on a file is one open file description of that file (F_OFD_SETLK): locks of two processes do not
merge, and those that one process takes through several fids do. Its end is when the process unlocks
everything, which Linux sends when the file is closed, or when the last fid it used for locks is gone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading

from pyvmm.devices.p9.beneath import refusal, reopen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.p9.fids import Budget, Fid

    Owner = tuple[int, int, bytes, int]  # device and inode, client and process

# Types in the protocol, which are Linux's own; and the status that answers.
RDLCK, WRLCK, UNLCK = 0, 1, 2
SUCCESS, BLOCKED = 0, 1

#: Open file descriptions for locks. One more gets ENOLCK.
MAX_OWNERS = 64

_FLOCK = struct.Struct("@hhqqi4x")  # struct flock: type, whence, start, len, pid
_END = 1 << 63


class Locks:
    """The locks of one session. ``writable``: the folder is, without which a lock cannot exclude the host.
    ``budget``: of the descriptors it holds.

    Its lock is held around fcntl, which does not wait, and while a description is opened.
    """

    def __init__(self, writable: bool, budget: Budget) -> None:
        self._lock = threading.Lock()
        self._modes = (os.O_RDWR, os.O_RDONLY) if writable else (os.O_RDONLY,)
        self._budget = budget
        self._held: dict[Owner, int] = {}
        self._users: dict[Owner, set[Fid]] = {}

    def set(self, fid: Fid, kind: int, start: int, length: int, process: int, client: bytes) -> int:
        """Take or release; the status for Rlock. ``length`` 0 means to the end. Raises OSError."""
        if kind not in (RDLCK, WRLCK, UNLCK) or start >= _END or length >= _END:
            raise refusal(errno.EINVAL)
        owner = _owner(fid, process, client)
        with self._lock:
            if kind == UNLCK and not start and not length:
                self._drop(owner)
                return SUCCESS
            fd = self._held.get(owner)
            if fd is None:
                if kind == UNLCK:
                    return SUCCESS
                fd = self._open(owner, fid)
            fid.locked = True
            self._users[owner].add(fid)
            return _try(fd, kind, start, length)

    def get(
        self, fid: Fid, kind: int, start: int, length: int, process: int, client: bytes
    ) -> tuple[int, int, int, int, bytes]:
        """Rgetlock: a lock of the host's that is in the way, or the request itself as UNLCK."""
        if kind not in (RDLCK, WRLCK) or start >= _END or length >= _END:
            raise refusal(errno.EINVAL)
        owner = _owner(fid, process, client)
        with self._lock:
            fd = self._held.get(owner)
            own = fd if fd is not None else _open_any(fid, self._modes)
            try:
                found = fcntl.fcntl(own, fcntl.F_OFD_GETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
            finally:
                if fd is None:
                    os.close(own)
        found_kind, _, found_start, found_length, _ = _FLOCK.unpack(found)
        if found_kind == fcntl.F_UNLCK:
            return UNLCK, start, length, process, client
        return found_kind, found_start, found_length, 0, b"host"

    def forget(self, fid: Fid) -> None:
        """``fid`` is gone: so are owners that used no other."""
        with self._lock:
            for owner in [owner for owner, users in self._users.items() if fid in users]:
                self._users[owner].discard(fid)
                if not self._users[owner]:
                    self._drop(owner)

    def close(self) -> None:
        """Release everything."""
        with self._lock:
            for owner in list(self._held):
                self._drop(owner)

    def _open(self, owner: Owner, fid: Fid) -> int:
        if len(self._held) >= MAX_OWNERS or not self._budget.take():
            raise refusal(errno.ENOLCK)
        try:
            self._held[owner] = fd = _open_any(fid, self._modes)
        except OSError:
            self._budget.give_back()
            raise
        self._users[owner] = set()
        return fd

    def _drop(self, owner: Owner) -> None:
        fd = self._held.pop(owner, None)
        self._users.pop(owner, None)
        if fd is not None:
            os.close(fd)
            self._budget.give_back()


def _owner(fid: Fid, process: int, client: bytes) -> Owner:
    status = os.stat(fid.opened())
    return status.st_dev, status.st_ino, client, process


def _open_any(fid: Fid, modes: tuple[int, ...]) -> int:
    """A description of its own, open for writing if possible."""
    for mode in modes[:-1]:
        try:
            return reopen(fid.fd, mode)
        except OSError:
            pass
    return reopen(fid.fd, modes[-1])


def _try(fd: int, kind: int, start: int, length: int) -> int:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return BLOCKED
        if error.errno != errno.EBADF:  # the host locks for writing only what it may write
            raise
    return SUCCESS
