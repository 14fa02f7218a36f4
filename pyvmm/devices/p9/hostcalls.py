# SPDX-License-Identifier: Apache-2.0
"""Linux system calls that a file server needs and the os module does not have. They raise OSError.

Structures are those of 64-bit Linux; x86-64, arm64 and riscv64 agree on them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

AT_FDCWD = -100
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
PROC_SUPER_MAGIC = 0x9FA0

_OPENAT2 = 437  # on every architecture
_GETDENTS64 = 217 if os.uname().machine == "x86_64" else 61  # 61 is that of the generic table
_OPEN_HOW = struct.Struct("=QQQ")  # struct open_how: flags, mode, resolve
_STATFS = struct.Struct("=qqQQQQQQq")  # struct statfs: type, bsize, blocks ... fsid, namelen
_TIMES = struct.Struct("=qqqq")  # struct timespec[2]
_RETRIES = 16

# linux/openat2.h
RESOLVE_NO_XDEV = 0x01  # EXDEV rather than entering another mount
RESOLVE_CACHED = 0x20  # EAGAIN rather than asking the disk. Since Linux 5.12

_libc = ctypes.CDLL(None, use_errno=True)

_syscall_openat2 = _libc["syscall"]
_syscall_openat2.restype = ctypes.c_long
_syscall_openat2.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)

_syscall_getdents64 = _libc["syscall"]
_syscall_getdents64.restype = ctypes.c_long
_syscall_getdents64.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)

_fstatfs = _libc["fstatfs"]
_fstatfs.argtypes = (ctypes.c_int, ctypes.c_char_p)

_utimensat = _libc["utimensat"]
_utimensat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)


def openat2(directory: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
    """A new descriptor. ``mode`` must be 0 unless a file may be created."""
    # EAGAIN without RESOLVE_CACHED: a rename came between.
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(_RETRIES):
        fd = int(_syscall_openat2(_OPENAT2, directory, path, how, len(how)))
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code != errno.EINTR and (code != errno.EAGAIN or resolve & RESOLVE_CACHED):
            break
    raise _error(code)


def getdents64(fd: int, size: int) -> bytes:
    """Entries of an open directory from its position on, as struct linux_dirent64; empty at the end."""
    buffer = ctypes.create_string_buffer(size)
    count = int(_syscall_getdents64(_GETDENTS64, fd, buffer, size))
    if count < 0:
        raise _error(ctypes.get_errno())
    return ctypes.string_at(buffer, count)


def fstatfs(fd: int) -> tuple[int, ...]:
    """(type, bsize, blocks, bfree, bavail, files, ffree, fsid, namelen) of the file system of ``fd``."""
    buffer = ctypes.create_string_buffer(256)
    if _fstatfs(fd, buffer):
        raise _error(ctypes.get_errno())
    return _STATFS.unpack_from(buffer)


def utimensat(path: bytes, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """Set times as (seconds, nanoseconds), or (0, UTIME_NOW), or (0, UTIME_OMIT)."""
    if _utimensat(AT_FDCWD, path, _TIMES.pack(*atime, *mtime), 0):
        raise _error(ctypes.get_errno())


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
