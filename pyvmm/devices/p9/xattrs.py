# SPDX-License-Identifier: Apache-2.0
"""Extended attributes: a fid that stands for one of them is read, or written and then closed."""

from __future__ import annotations

import errno
import os

from pyvmm.devices.p9.beneath import proc, refusal

XATTR_NAME_MAX, XATTR_SIZE_MAX = 255, 65536  # linux/limits.h

#: How many may be written at a time: each has a buffer, which the guest does not pay for.
MAX_WRITTEN = 64


def check(name: bytes) -> bytes:
    """``name`` if it can be one. Raises OSError."""
    if not name or b"\0" in name or len(name) > XATTR_NAME_MAX:
        raise refusal(errno.ERANGE if name and b"\0" not in name else errno.EINVAL)
    return name


class ListedXattr:
    """A value being read, or, without a name, the list of all names. It is fetched anew for every read."""

    __slots__ = ("name",)

    def __init__(self, name: bytes) -> None:
        self.name = check(name) if name else b""

    def read(self, fd: int) -> bytes:
        """The whole of it. ``fd`` is the file's."""
        if self.name:
            return os.getxattr(proc(fd), self.name)
        return b"".join(os.fsencode(name) + b"\0" for name in os.listxattr(proc(fd)))


class WrittenXattr:
    """A value being written: set when it is complete and its fid is clunked."""

    __slots__ = ("_flags", "_name", "_size", "_value")

    def __init__(self, name: bytes, size: int, flags: int) -> None:
        if size > XATTR_SIZE_MAX:
            raise refusal(errno.E2BIG)
        if flags & ~(os.XATTR_CREATE | os.XATTR_REPLACE):
            raise refusal(errno.EINVAL)
        self._name = check(name)
        self._size = size
        self._flags = flags
        self._value = bytearray()

    def write(self, offset: int, data: bytes) -> None:
        """More of the value, in order. Raises OSError."""
        if offset != len(self._value) or offset + len(data) > self._size:
            raise refusal(errno.ENOSPC if offset == len(self._value) else errno.EINVAL)
        self._value += data

    def apply(self, fd: int) -> None:
        """Set it on the file of ``fd``, or remove it: that is how Linux asks for it, replace by nothing."""
        if len(self._value) != self._size:
            raise refusal(errno.EINVAL)
        if not self._size and self._flags == os.XATTR_REPLACE:
            os.removexattr(proc(fd), self._name)
        else:
            os.setxattr(proc(fd), self._name, self._value, self._flags)
