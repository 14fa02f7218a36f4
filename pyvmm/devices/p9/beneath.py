# SPDX-License-Identifier: Apache-2.0
"""How the server names files: one step at a time from a descriptor, so that no name leads out of the folder.

Three rules hold everywhere. A name is one component: never ``..``, never with a slash. A step never follows
a symbolic link, also not one that is put there meanwhile: it opens the link itself. And what was reached is
kept as a descriptor (O_PATH, which has no effect on the file): later operations are on that file, whatever
its name now leads to.

``/proc/self/fd/N`` then stands for the file of descriptor N itself, no name is looked up. It takes the place
of the system calls that refuse an O_PATH descriptor.
"""

from __future__ import annotations

import errno
import os
import stat

from pyvmm.devices.p9.hostcalls import RESOLVE_CACHED, RESOLVE_NO_XDEV, openat2
from pyvmm.errors import ConfigError

# linux/openat2.h
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x02, 0x04, 0x08
_RESOLVE = _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH

NAME_MAX = 255


def refusal(code: int) -> OSError:
    """The error that answers a request with this errno."""
    return OSError(code, os.strerror(code))


def proc(fd: int) -> bytes:
    """A path to the very file that ``fd`` is."""
    return b"/proc/self/fd/%d" % fd


def check_name(name: bytes) -> bytes:
    """``name`` if it can only name an entry of a directory. Raises OSError."""
    if len(name) > NAME_MAX:
        raise refusal(errno.ENAMETOOLONG)
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise refusal(errno.EINVAL)
    return name


def open_root(path: str, what: str) -> int:
    """The shared folder's own descriptor. ``what`` is how the user asked for it. Raises ConfigError."""
    try:
        root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        wrong = {errno.ENOTDIR: "is not a folder", errno.ENOENT: "does not exist"}.get(error.errno or 0)
        if wrong is not None:
            raise ConfigError(f"{what}: {path} {wrong}; give the folder to share.") from None
        raise ConfigError(f"{what}: {path} cannot be shared: {error.strerror}; share another one.") from None
    try:
        os.close(openat2(root, b".", os.O_PATH, 0, _RESOLVE))
        os.stat(proc(root))
    except PermissionError:
        os.close(root)
        raise ConfigError(f"{what}: {path} may not be searched by you; ask for access to it.") from None
    except OSError as error:
        os.close(root)
        raise ConfigError(
            f"{what}: sharing a folder needs openat2 (Linux 5.6) and /proc: {error.strerror}."
        ) from None
    return root


def step(directory: int, name: bytes, *, patient: bool = True) -> int:
    """An O_PATH descriptor of the entry ``name``, be it a symbolic link.

    Unless ``patient``, only when the kernel knows it without asking the file system: EAGAIN or EINVAL else.
    And only on the same mount, EXDEV or EAGAIN else: what is mounted there may not answer.
    """
    resolve = _RESOLVE if patient else _RESOLVE | RESOLVE_CACHED | RESOLVE_NO_XDEV
    return openat2(directory, check_name(name), os.O_PATH | os.O_NOFOLLOW, 0, resolve)


def create(directory: int, name: bytes, flags: int, mode: int) -> int:
    """A new file, open. Raises FileExistsError for any entry that is there, link or not."""
    flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_NOCTTY
    return openat2(directory, check_name(name), flags, mode & 0o7777, _RESOLVE)


def reopen(fd: int, flags: int) -> int:
    """Open the regular file or directory of ``fd`` for input and output.

    Anything else is refused: opening a pipe waits for its other end, opening a device acts on it. In a guest
    they are the guest's own, and its kernel never asks for them.
    """
    kind = os.stat(fd).st_mode
    if stat.S_ISLNK(kind):
        raise refusal(errno.ELOOP)
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise refusal(errno.ENXIO)
    return os.open(proc(fd), flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def locate(root: int, fd: int) -> tuple[int, bytes]:
    """Where the file of ``fd`` is now: a descriptor of the directory, and its name there.

    Only for the few messages that name a file by nothing but its fid. Raises OSError when it is the root,
    is not beneath it any more, or was replaced meanwhile.
    """
    top, path = os.readlink(proc(root)), os.readlink(proc(fd))
    if path == top:
        raise refusal(errno.EBUSY)
    prefix = top.rstrip(b"/") + b"/"
    if not path.startswith(prefix):
        raise refusal(errno.ENOENT)
    parents, _, name = path[len(prefix) :].rpartition(b"/")
    directory = openat2(root, parents or b".", os.O_PATH | os.O_DIRECTORY, 0, _RESOLVE)
    try:
        if not os.path.samestat(os.stat(name, dir_fd=directory, follow_symlinks=False), os.stat(fd)):
            raise refusal(errno.ENOENT)
    except OSError:
        os.close(directory)
        raise
    return directory, name
