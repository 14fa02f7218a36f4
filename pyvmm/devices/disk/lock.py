# SPDX-License-Identifier: Apache-2.0
"""Locks on disk images, which keep two machines from writing one image, and from reading what another writes.

They are those that QEMU takes, so the two exclude each other: locks of open file descriptions, shared ones
only, on single bytes, whose contents do not matter. Byte 100 + p says "I need p" and byte 200 + p "nobody
else may p", for the permissions p below. Whether somebody else said so is found by testing for an exclusive
lock. Everybody announces first and asks then: of two at once both may be refused, never both let in.
"""

from __future__ import annotations

import fcntl
import os
import struct

_NEEDS, _FORBIDS = 100, 200
_READ, _WRITE, _RESIZE = 0, 1, 3

_FLOCK = struct.Struct("@hhqqi4x")  # struct flock: type, whence, start, length, pid


def lock(fd: int, *, read_only: bool) -> bool:
    """Lock an image for as long as its open file description lives. False: another machine is in the way.

    Any number of machines may read an image; one that writes to it is alone. Raises OSError where the file
    system cannot lock.
    """
    needs = (_READ,) if read_only else (_READ, _WRITE, _RESIZE)
    forbids = (_WRITE, _RESIZE)
    for byte in _bytes(_NEEDS, needs) + _bytes(_FORBIDS, forbids):
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK, byte))
    return all(_is_free(fd, byte) for byte in _bytes(_FORBIDS, needs) + _bytes(_NEEDS, forbids))


def _bytes(base: int, permissions: tuple[int, ...]) -> list[int]:
    return [base + permission for permission in permissions]


def _is_free(fd: int, byte: int) -> bool:
    """Whether nobody else holds a lock on ``byte``."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, byte))
    kind: int = _FLOCK.unpack(answer)[0]
    return kind == fcntl.F_UNLCK


def _flock(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)
