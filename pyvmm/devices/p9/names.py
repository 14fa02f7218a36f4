# SPDX-License-Identifier: Apache-2.0
"""Handlers of the messages that deal with names: making, moving and removing directory entries.

The system calls used here (mkdirat, renameat, ...) never follow a link in their last component, and a name
has only that one.
"""

from __future__ import annotations

import errno
import os

from pyvmm.devices.p9 import beneath
from pyvmm.devices.p9.attrs import settle
from pyvmm.devices.p9.beneath import check_name, proc, refusal
from pyvmm.devices.p9.protocol import string

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.p9.fids import Fid
    from pyvmm.devices.p9.server import Request, Server

_REMOVE_DIRECTORY = 0x200  # Tunlinkat's flag


def readlink(server: Server, _request: Request, number: int) -> bytes:
    """The target of a symbolic link: text, which only the guest follows."""
    with server.fids.use(number) as fid:
        return string(os.readlink(b"", dir_fd=fid.fd))


def symlink(server: Server, _request: Request, directory: int, name: bytes, target: bytes, gid: int) -> bytes:
    """Make a symbolic link."""
    with server.fids.use(directory) as parent:
        os.symlink(target, check_name(name), dir_fd=parent.fd)
        return _made(server, parent, name, gid, None)


def mknod(
    server: Server,
    _request: Request,
    directory: int,
    name: bytes,
    mode: int,
    major: int,
    minor: int,
    gid: int,
) -> bytes:
    """Make a file of any kind that the host lets pyvmm make. Nobody opens it here."""
    with server.fids.use(directory) as parent:
        os.mknod(check_name(name), mode, os.makedev(major, minor), dir_fd=parent.fd)
        return _made(server, parent, name, gid, mode)


def mkdir(server: Server, _request: Request, directory: int, name: bytes, mode: int, gid: int) -> bytes:
    """Make a directory."""
    with server.fids.use(directory) as parent:
        os.mkdir(check_name(name), mode & 0o7777, dir_fd=parent.fd)
        return _made(server, parent, name, gid, mode)


def _made(server: Server, parent: Fid, name: bytes, gid: int, mode: int | None) -> bytes:
    """Settle what was just made, and its qid."""
    fd = beneath.step(parent.fd, name)
    try:
        return server.devices.qid(settle(fd, parent.uid, gid, mode), fd)
    finally:
        os.close(fd)


def link(server: Server, _request: Request, directory: int, number: int, name: bytes) -> bytes:
    """Another name for a file."""
    with server.fids.use(directory) as parent, server.fids.use(number) as fid:
        os.link(proc(fid.fd), check_name(name), dst_dir_fd=parent.fd, follow_symlinks=True)
    return b""


def renameat(
    server: Server, _request: Request, old_directory: int, old: bytes, new_directory: int, new: bytes
) -> bytes:
    """Move an entry."""
    with server.fids.use(old_directory) as source, server.fids.use(new_directory) as target:
        os.rename(check_name(old), check_name(new), src_dir_fd=source.fd, dst_dir_fd=target.fd)
    return b""


def rename(server: Server, _request: Request, number: int, directory: int, new: bytes) -> bytes:
    """Move the file of a fid."""
    with server.fids.use(number) as fid, server.fids.use(directory) as target:
        check_name(new)
        parent, name = beneath.locate(server.root, fid.fd)
        try:
            os.rename(name, new, src_dir_fd=parent, dst_dir_fd=target.fd)
        finally:
            os.close(parent)
    return b""


def unlinkat(server: Server, _request: Request, directory: int, name: bytes, flags: int) -> bytes:
    """Remove an entry."""
    if flags & ~_REMOVE_DIRECTORY:
        raise refusal(errno.EINVAL)
    with server.fids.use(directory) as parent:
        remover = os.rmdir if flags else os.unlink
        remover(check_name(name), dir_fd=parent.fd)
    return b""


def remove(server: Server, _request: Request, number: int) -> bytes:
    """Remove the file of a fid. The fid is gone, whether that succeeds or not."""
    with server.fids.forget(number) as fid:
        parent, name = beneath.locate(server.root, fid.fd)
        try:
            try:
                os.unlink(name, dir_fd=parent)
            except IsADirectoryError:
                os.rmdir(name, dir_fd=parent)
        finally:
            os.close(parent)
    return b""
