# SPDX-License-Identifier: Apache-2.0
"""The host's side of a disk: a raw image file or a block device, read and written at byte offsets.

Everything that can be wrong with what the user named is found by ``open_image``, which raises ConfigError
with a sentence. Afterwards errors are the host's: every method raises OSError.

``direct`` goes around the host's page cache (O_DIRECT). The kernel then demands aligned offsets, lengths
and buffers; what a guest sends otherwise goes through an aligned buffer of ours. Where the host's blocks are
larger than a sector, a part of one is written by reading it, changing it and writing it back; so that no
other change comes in between and is undone, changes are then made one at a time.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import threading
from functools import partial

from pyvmm.devices.virtio.chain import gather, scatter, split, total

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Views = list[memoryview]

SECTOR = 512

_IOV_MAX = 1024
_BOUNCE = 1 << 20  # bytes of a buffer that takes the place of the guest's
_ZEROS_AT_ONCE = 64  # such buffers of zeros in one write

_PUNCH_HOLE, _ZERO_RANGE, _KEEP_SIZE = 2, 0x10, 1  # <linux/falloc.h>
_BLKDISCARD = 0x1277  # <linux/fs.h>; takes {u64 start, u64 length}, in bytes
_IN_MEMORY = (0x0102_1994, 0x8584_58F6)  # f_type of tmpfs and ramfs
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY)

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc["fallocate"]
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
_fstatfs = _libc["fstatfs"]


class DiskImage:
    """An open image. ``size`` bytes, in logical blocks of ``block_size`` and physical ones of ``physical``.

    Methods but ``close`` may be called from several threads at once. Offsets and lengths are bytes.
    """

    def __init__(
        self,
        fd: int,
        size: int,
        *,
        read_only: bool = False,
        is_device: bool = False,
        block_size: int = SECTOR,
        physical: int = 4096,
        direct_block: int = 0,
    ) -> None:
        """``direct_block``: what offsets and lengths of O_DIRECT are multiples of; 0 without O_DIRECT."""
        self._fd = fd
        self.size = size
        self.read_only = read_only
        self.is_device = is_device
        self.block_size = block_size
        self.physical = physical
        self._direct_block = direct_block
        self._write_lock = threading.Lock()
        #: Reading and writing never waits for a disk.
        self.in_memory = not is_device and _file_system(fd) in _IN_MEMORY
        self._can_peek = not direct_block

    def close(self) -> None:
        """Give the descriptor, and with it the lock, back. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # Reading and writing

    def read_cached(self, views: Views, offset: int, length: int) -> bool:
        """Fill ``views``, of ``length`` bytes, if that needs no waiting; else False, and a part may be."""
        if self._can_peek and len(views) <= _IOV_MAX:
            try:
                flags = 0 if self.in_memory else os.RWF_NOWAIT
                if os.preadv(self._fd, views, offset, flags) == length:
                    return True
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                self._can_peek = False  # this file system does not know how to
        if self.in_memory:
            self.read(views, offset)
        return self.in_memory

    def read(self, views: Views, offset: int) -> None:
        """Fill ``views`` from ``offset`` on."""
        try:
            self._transfer(os.preadv, views, offset, 0)
        except OSError as error:
            if not self._is_misaligned(error):
                raise
            self._bounce(views, offset, False, 0)

    def write(self, views: Views, offset: int, durable: bool = False) -> None:
        """Write ``views`` from ``offset`` on. ``durable``: as if ``flush`` followed."""
        flags = os.RWF_DSYNC if durable else 0
        self._alone(partial(self._write, views, offset, flags))

    def flush(self) -> None:
        """Put on disk what was written before."""
        os.fdatasync(self._fd)

    def discard(self, offset: int, length: int) -> None:
        """Say that nobody needs this range: it may read as anything. Does nothing where the host cannot."""
        block = self.block_size
        start, end = -(-offset // block) * block, (offset + length) // block * block
        if start >= end:
            return
        try:
            if self.is_device:
                span = start.to_bytes(8, "little") + (end - start).to_bytes(8, "little")
                fcntl.ioctl(self._fd, _BLKDISCARD, span)
            else:
                self._alone(partial(self._allocate, _PUNCH_HOLE, start, end - start))
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """Make this range read as zeros, and with ``unmap`` give back its space, if the host can."""
        for mode in (_PUNCH_HOLE, _ZERO_RANGE) if unmap else (_ZERO_RANGE,):
            try:
                self._alone(partial(self._allocate, mode, offset, length))
                return
            except OSError as error:
                # EINVAL: parts of a block of a block device.
                if error.errno not in (*_UNSUPPORTED, errno.EINVAL):
                    raise
        self._write_zeros(offset, length)

    def _alone(self, change: Callable[[], None]) -> None:
        """Make a change, and no other one meanwhile where changing a part of a block takes two calls."""
        if self._direct_block <= SECTOR:
            change()
        else:
            with self._write_lock:
                change()

    def _write(self, views: Views, offset: int, flags: int) -> None:
        try:
            self._transfer(os.pwritev, views, offset, flags)
        except OSError as error:
            if not self._is_misaligned(error):
                raise
            self._bounce(views, offset, True, flags)

    def _transfer(self, call: Callable[..., int], views: Views, offset: int, flags: int) -> None:
        left = total(views)
        while left:
            count = call(self._fd, views[:_IOV_MAX], offset, flags)
            if not count:
                raise OSError(errno.EIO, "the image became shorter")
            offset += count
            left -= count
            if left:
                views = split(views, count)[1]

    def _write_zeros(self, offset: int, length: int) -> None:
        zeros = memoryview(mmap.mmap(-1, _BOUNCE, prot=mmap.PROT_READ))
        while length:
            at_once = min(length, _ZEROS_AT_ONCE * _BOUNCE)
            whole, rest = divmod(at_once, _BOUNCE)
            self.write([zeros] * whole + [zeros[:rest]] * bool(rest), offset)
            offset += at_once
            length -= at_once

    def _allocate(self, mode: int, offset: int, length: int) -> None:
        if _fallocate(self._fd, mode | _KEEP_SIZE, offset, length):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    # O_DIRECT

    def _is_misaligned(self, error: OSError) -> bool:
        return bool(self._direct_block) and error.errno == errno.EINVAL

    def _bounce(self, views: Views, offset: int, writing: bool, flags: int) -> None:
        """Read or write by way of an aligned buffer, in whole blocks."""
        block, left = self._direct_block, total(views)
        buffer = memoryview(mmap.mmap(-1, _BOUNCE))
        while left:
            skip = offset % block
            count = min(left, _BOUNCE - skip)
            area = [buffer[: -(-(skip + count) // block) * block]]
            inner = buffer[skip : skip + count]
            if not writing or len(area[0]) != count:
                self._transfer(os.preadv, area, offset - skip, 0)
            if writing:
                inner[:] = gather(views, count)
                self._transfer(os.pwritev, area, offset - skip, flags)
            else:
                scatter(views, inner)
            views = split(views, count)[1]
            offset += count
            left -= count


def _file_system(fd: int) -> int:
    """f_type of struct statfs, its first word; 0 when the kernel does not say."""
    statfs = (ctypes.c_long * 32)()  # larger than the structure
    return 0 if _fstatfs(fd, statfs) else int(statfs[0])
