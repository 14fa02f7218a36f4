# SPDX-License-Identifier: Apache-2.0
"""Handlers of the messages that deal with one file: opening, data, attributes, listings, locks."""

from __future__ import annotations

import errno
import os
import struct

from pyvmm.devices.p9 import attrs, beneath
from pyvmm.devices.p9.beneath import check_name, refusal
from pyvmm.devices.p9.fids import Fid
from pyvmm.devices.p9.hostcalls import fstatfs, getdents64
from pyvmm.devices.p9.protocol import COUNT, NOFID, QID, WRITE_HEADER, string
from pyvmm.devices.p9.xattrs import MAX_WRITTEN, XATTR_SIZE_MAX, ListedXattr, WrittenXattr
from pyvmm.devices.virtio.chain import gather, scatter, split, total

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.p9.server import Request, Server

# Open flags in the protocol, which are Linux's own. The others are the guest's business: its kernel appends
# by naming offsets, and what it caches is not what the host does. O_CREAT without O_EXCL is handled here.
_ACCESS, _EXCL, _TRUNC = 0o3, 0o200, 0o1000
_DURABLE = 0o10000 | 0o4000000  # O_DSYNC, O_SYNC
_PASSED = _ACCESS | _TRUNC | _DURABLE

_STATFS = struct.Struct("<IIQQQQQQI")
_DIRENT = struct.Struct("<QqHB")  # struct linux_dirent64: ino, off, reclen, type; the name follows
_ENTRY = struct.Struct("<13sQBH")  # qid, offset, type, length of the name; the name follows
_LOCK_REPLY = struct.Struct("<BQQI")

_MAX_IOV = 1024
_MIN_LISTING = 512  # the kernel refuses room for less than one entry
_DT_DIR, _DT_LNK = 4, 10


def statfs(server: Server, _request: Request, number: int) -> bytes:
    """The file system of a file."""
    with server.fids.use(number) as fid:
        kind, block, blocks, free, available, inodes, free_inodes, fsid, longest = fstatfs(fid.fd)
    return _STATFS.pack(
        kind & 0xFFFF_FFFF, block & 0xFFFF_FFFF, blocks, free, available, inodes, free_inodes, fsid,
        longest & 0xFFFF_FFFF,
    )  # fmt: skip


def lopen(server: Server, request: Request, number: int, flags: int) -> bytes:
    """Open a file for input and output."""
    access = flags & _ACCESS
    if not request.patient and flags & (_ACCESS | _TRUNC):
        raise refusal(errno.EAGAIN)
    if not server.writable and (access != os.O_RDONLY or flags & _TRUNC):
        raise refusal(errno.EROFS)
    with server.fids.use(number) as fid:
        if fid.access is not None or fid.xattr is not None:
            raise refusal(errno.EBADF)
        fd = beneath.reopen(fid.fd, flags & _PASSED)
        return _opened(server, number, fid, fd, access)


def lcreate(
    server: Server, _request: Request, number: int, name: bytes, flags: int, mode: int, gid: int
) -> bytes:
    """Make a file and open it: the fid of the directory becomes that of the file."""
    with server.fids.use(number) as parent:
        if parent.access is not None or parent.xattr is not None:
            raise refusal(errno.EBADF)
        fd = _create(parent, check_name(name), flags, mode, gid)
        return _opened(server, number, parent, fd, flags & _ACCESS)


def _opened(server: Server, number: int, before: Fid, fd: int, access: int) -> bytes:
    """``fd`` takes the place of ``before``. Frames are as large as they are: the I/O unit is left open."""
    try:
        qid = server.devices.qid_of(fd)
    except OSError:
        os.close(fd)
        raise
    server.fids.install(number, Fid(fd, before.uid, access), instead_of=before)
    return qid + COUNT.pack(0)


def _create(parent: Fid, name: bytes, flags: int, mode: int, gid: int) -> int:
    try:
        fd = beneath.create(parent.fd, name, flags & _PASSED, mode)
    except FileExistsError:
        if flags & _EXCL:
            raise
        there = beneath.step(parent.fd, name)
        try:
            return beneath.reopen(there, flags & _PASSED)
        finally:
            os.close(there)
    try:
        attrs.settle(fd, parent.uid, gid, mode)
    except OSError:
        os.close(fd)
        raise
    return fd


def read(server: Server, request: Request, number: int, offset: int, count: int) -> bytes:
    """Data of a file, straight into the guest's buffer; or an extended attribute's value."""
    with server.fids.use(number) as fid:
        room = split(request.room, min(count, request.limit))[0][:_MAX_IOV]
        if isinstance(fid.xattr, ListedXattr) and request.patient:
            request.filled = scatter(room, fid.xattr.read(fid.fd)[offset:])
        else:
            request.spend(0, total(room))
            request.filled = _read(fid.opened(), room, offset, request.patient) if room else 0
    return COUNT.pack(request.filled)


def _read(fd: int, room: list[memoryview], offset: int, patient: bool) -> int:
    if patient:
        return os.preadv(fd, room, offset)
    count = os.preadv(fd, room, offset, os.RWF_NOWAIT)
    if count < total(room) and offset + count < os.stat(fd).st_size:  # the rest is not in memory
        raise refusal(errno.EAGAIN)
    return count


def write(server: Server, request: Request, number: int, offset: int, count: int) -> bytes:
    """Data for a file, straight from the guest's buffer; or for an extended attribute's value."""
    if count > server.msize - WRITE_HEADER:  # descriptors may repeat: a chain can have more than the guest
        raise refusal(errno.EINVAL)
    data = split(request.payload, count)[0]
    if total(data) < count:
        raise refusal(errno.EPROTO)
    with server.fids.use(number) as fid:
        if isinstance(fid.xattr, WrittenXattr):
            with fid.turn:
                fid.xattr.write(offset, gather(data, XATTR_SIZE_MAX + 1))
            return COUNT.pack(count)
        fd = fid.opened()
        return COUNT.pack(os.pwritev(fd, data[:_MAX_IOV], offset) if data else 0)


def fsync(server: Server, _request: Request, number: int, data_only: int) -> bytes:
    """Until this is answered what was written is not safe."""
    with server.fids.use(number) as fid:
        fd = fid.opened()
        if data_only:
            os.fdatasync(fd)
        else:
            os.fsync(fd)
    return b""


def readdir(server: Server, request: Request, number: int, offset: int, count: int) -> bytes:
    """Entries of a directory from ``offset`` on: 0, or what came with an earlier entry.

    Offsets are the host file system's own, which stay good while entries come and go.
    """
    room = min(count, request.limit)
    with server.fids.use(number) as fid:
        fd = fid.opened()
        with fid.turn:
            os.lseek(fd, offset, os.SEEK_SET)
            listing = getdents64(fd, max(room, _MIN_LISTING))
        entries = _entries(server, fd, listing, room)
    return COUNT.pack(len(entries)) + entries


def _entries(server: Server, fd: int, listing: bytes, room: int) -> bytes:
    """As many entries as fit, in the protocol's form."""
    status = os.stat(fd)
    is_root = os.path.samestat(status, os.stat(server.root))
    parts: list[bytes] = []
    size = at = 0
    while at < len(listing):
        inode, following, length, kind = _DIRENT.unpack_from(listing, at)
        name = listing[at + _DIRENT.size : listing.index(0, at + _DIRENT.size)]
        at += length
        size += _ENTRY.size + len(name)
        if size > room:
            if not parts:
                raise refusal(errno.EINVAL)  # nothing at all would mean the end
            break
        if is_root and name == b"..":
            inode = status.st_ino
        type_ = attrs.QTDIR if kind == _DT_DIR else attrs.QTSYMLINK if kind == _DT_LNK else attrs.QTFILE
        qid = QID.pack(type_, 0, server.devices.path(status.st_dev, fd, inode))
        parts.append(_ENTRY.pack(qid, following & (1 << 64) - 1, kind, len(name)) + name)
    return b"".join(parts)


def getattr(server: Server, _request: Request, number: int, _mask: int) -> bytes:
    """All attributes there are, whatever is asked for."""
    with server.fids.use(number) as fid:
        status = os.stat(fid.fd)
        return attrs.attributes(status, server.devices.qid(status, fid.fd))


def setattr(server: Server, _request: Request, number: int, *wanted: int) -> bytes:
    """Change owner, mode, size, times."""
    with server.fids.use(number) as fid:
        attrs.set_attributes(fid.fd, fid.writable, attrs.Wanted(*wanted))
    return b""


def xattrwalk(server: Server, _request: Request, number: int, new: int, name: bytes) -> bytes:
    """``new`` stands for an extended attribute, or for the list of them, and is read like a file."""
    with server.fids.use(number) as fid:
        if new in (number, NOFID):
            raise refusal(errno.EINVAL)
        xattr = ListedXattr(name)
        size = len(xattr.read(fid.fd))
        server.fids.install(new, Fid(os.dup(fid.fd), fid.uid, xattr=xattr))
    return struct.pack("<Q", size)


def xattrcreate(server: Server, _request: Request, number: int, name: bytes, size: int, flags: int) -> bytes:
    """The fid becomes that of an extended attribute, to be written, and set when the fid is clunked."""
    with server.fids.use(number) as fid:
        if server.fids.count(is_written) >= MAX_WRITTEN:
            raise refusal(errno.ENOSPC)
        xattr = WrittenXattr(name, size, flags)
        server.fids.install(number, Fid(os.dup(fid.fd), fid.uid, xattr=xattr), instead_of=fid)
    return b""


def is_written(fid: Fid) -> bool:
    """Whether an extended attribute is being written through it."""
    return isinstance(fid.xattr, WrittenXattr)


def lock(
    server: Server, _request: Request, number: int, kind: int, _flags: int, start: int, length: int,
    process: int, client: bytes,
) -> bytes:  # fmt: skip
    """Take or release a byte-range lock. It never waits: the guest asks again."""
    with server.fids.use(number) as fid:
        return bytes((server.locks.set(fid, kind, start, length, process, client),))


def getlock(
    server: Server, _request: Request, number: int, kind: int, start: int, length: int, process: int,
    client: bytes,
) -> bytes:  # fmt: skip
    """The lock that is in the way of this one."""
    with server.fids.use(number) as fid:
        found = server.locks.get(fid, kind, start, length, process, client)
    return _LOCK_REPLY.pack(*found[:4]) + string(found[4])
