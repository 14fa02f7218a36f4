# SPDX-License-Identifier: Apache-2.0
"""What a file is to the guest: qid, attributes, owner. Numbers of owners and modes are the host's own."""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading

from pyvmm.devices.p9.beneath import proc, refusal
from pyvmm.devices.p9.hostcalls import PROC_SUPER_MAGIC, UTIME_NOW, UTIME_OMIT, fstatfs, utimensat
from pyvmm.devices.p9.protocol import QID

# qid types.
QTDIR, QTSYMLINK, QTFILE = 0x80, 0x02, 0x00

GETATTR_BASIC = 0x7FF  # everything that stat(2) knows: no birth time, generation or data version
_ATTRIBUTES = struct.Struct("<Q13sIIIQQQQQQQQQQQQQQQ")

# Tsetattr's ``valid``.
_MODE, _UID, _GID, _SIZE, _ATIME, _MTIME, _ATIME_SET, _MTIME_SET = 1, 2, 4, 8, 16, 32, 128, 256
_TIMES = _ATIME | _MTIME

_KEEP = -1  # chown(2): leave as it is

# File systems (linux/magic.h) that know an open file's attributes without waiting for anybody.
_LOCAL = frozenset(
    (0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0xF2F5_2010, 0x794C_7630)
)  # ext4, xfs, btrfs, tmpfs, f2fs, overlay


class Devices:
    """The file systems mounted in the folder, numbered as they are met: a qid's path is unique over all.

    A process file system is out of bounds: its files are no files but the host's processes, among them this
    one with its memory. It is there when somebody shares the host's root folder.
    """

    def __init__(self, root: int) -> None:
        self._numbers: dict[int, int] = {}
        self._lock = threading.Lock()
        #: All that were met so far are local.
        self.local = True
        self.number(os.stat(root).st_dev, root)

    def number(self, device: int, fd: int) -> int:
        """The number of the file system that ``fd`` is on. Raises OSError (EACCES) when out of bounds."""
        known = self._numbers.get(device)
        if known is None:
            kind = fstatfs(fd)[0]
            if kind == PROC_SUPER_MAGIC:
                raise refusal(errno.EACCES)
            if kind not in _LOCAL:
                self.local = False
            with self._lock:
                known = self._numbers.setdefault(device, len(self._numbers))
        return known

    def path(self, device: int, fd: int, inode: int) -> int:
        """The 64 bits of a qid that name a file. Inode numbers beyond 48 bits might collide, no others."""
        return inode ^ (self.number(device, fd) & 0xFFFF) << 48

    def qid_of(self, fd: int) -> bytes:
        """The qid of the file of ``fd``."""
        return self.qid(os.stat(fd), fd)

    def qid(self, status: os.stat_result, fd: int) -> bytes:
        """The same when its status is known. The version changes whenever the file does."""
        version = (status.st_ctime_ns ^ status.st_size << 8) & 0xFFFF_FFFF
        return QID.pack(qid_type(status.st_mode), version, self.path(status.st_dev, fd, status.st_ino))


def qid_type(mode: int) -> int:
    """The qid's type byte."""
    return QTDIR if stat.S_ISDIR(mode) else QTSYMLINK if stat.S_ISLNK(mode) else QTFILE


def attributes(status: os.stat_result, qid: bytes) -> bytes:
    """Body of Rgetattr."""
    times = [
        part for ns in (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns) for part in _split(ns)
    ]
    return _ATTRIBUTES.pack(
        GETATTR_BASIC, qid, status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_rdev,
        status.st_size, status.st_blksize, status.st_blocks, *times, 0, 0, 0, 0,
    )  # fmt: skip


def _split(ns: int) -> tuple[int, int]:
    seconds, rest = divmod(ns, 10**9)
    return seconds & (1 << 64) - 1, rest  # times before 1970 are negative


class Wanted:
    """The body of Tsetattr after the fid; ``valid`` says which of it counts."""

    __slots__ = ("atime", "gid", "mode", "mtime", "size", "uid", "valid")

    def __init__(
        self, valid: int, mode: int, uid: int, gid: int, size: int, as_: int, ans: int, ms: int, mns: int
    ) -> None:
        self.valid = valid
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.atime = (_signed(as_), _signed(ans))
        self.mtime = (_signed(ms), _signed(mns))


def set_attributes(fd: int, writable: bool, wanted: Wanted) -> None:
    """Apply Tsetattr to the file of ``fd``, which is ``writable`` when open for it."""
    valid, path = wanted.valid, proc(fd)
    if valid & (_UID | _GID):  # before the mode: it clears the set-user-id bit
        os.chown(path, wanted.uid if valid & _UID else _KEEP, wanted.gid if valid & _GID else _KEEP)
    if valid & _SIZE:  # before the mode, too: for an ordinary user it clears that bit as well
        if writable:  # it may have been opened with rights that its mode does not give any more
            os.ftruncate(fd, wanted.size)
        else:
            _truncate(fd, wanted.size)
    if valid & _MODE:
        os.chmod(path, wanted.mode & 0o7777)
    if valid & _TIMES:
        utimensat(
            path,
            _time(valid, _ATIME, _ATIME_SET, wanted.atime),
            _time(valid, _MTIME, _MTIME_SET, wanted.mtime),
        )


def _truncate(fd: int, size: int) -> None:
    if not stat.S_ISREG(os.stat(fd).st_mode):
        raise refusal(errno.EINVAL)
    os.truncate(proc(fd), size)


def _time(valid: int, this: int, given: int, value: tuple[int, int]) -> tuple[int, int]:
    if not valid & this:
        return 0, UTIME_OMIT
    return value if valid & given else (0, UTIME_NOW)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def settle(fd: int, uid: int | None, gid: int, mode: int | None) -> os.stat_result:
    """Give a file just made its owner and mode, for the host's umask and user are not the guest's.

    The owner stays pyvmm's where the host does not let it give files away. ``mode`` is None for a symbolic
    link, which has none.
    """
    status, changed = os.stat(fd), False
    owner = (status.st_uid if uid is None else uid, gid)
    if owner != (status.st_uid, status.st_gid):
        changed = _give_away(proc(fd), *owner)
    if mode is not None and (changed or stat.S_IMODE(status.st_mode) != mode & 0o7777):
        os.chmod(proc(fd), mode & 0o7777)
        changed = True
    return os.stat(fd) if changed else status


def _give_away(path: bytes, uid: int, gid: int) -> bool:
    try:
        os.chown(path, uid, gid)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EINVAL):  # EINVAL: a number this host cannot store
            raise
        return False
    return True
