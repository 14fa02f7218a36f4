# SPDX-License-Identifier: Apache-2.0
"""Opening what the user named as a disk, with a clear word about everything that can be wrong with it."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat

from pyvmm.devices.disk import lock as imagelock
from pyvmm.devices.disk.image import SECTOR, DiskImage
from pyvmm.errors import ConfigError

_BLKROGET, _BLKSSZGET, _BLKPBSZGET = 0x125E, 0x1268, 0x127B  # <linux/fs.h>; each answers with a C int
_LARGEST_BLOCK = 1 << 16  # that O_DIRECT may ask for

# Bytes at the beginning by which a file that is not a raw image is known: at which offset, what, what it is.
_FORMATS = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (0, b"QED\0", "QED"),
    (0x40, b"\x7f\x10\xda\xbe", "VDI"),
)
_COMPRESSED = (
    (b"\x1f\x8b\x08", "gzip -d"),
    (b"\xfd7zXZ\0", "xz -d"),
    (b"\x28\xb5\x2f\xfd", "zstd -d"),
    (b"BZh", "bzip2 -d"),
)


def open_image(
    path: str,
    what: str,
    *,
    read_only: bool = False,
    direct: bool = False,
    any_content: bool = False,
) -> DiskImage:
    """Open and lock an image. ``what`` is how the user spelled it, for messages.

    ``any_content``: it is raw, whatever its first bytes look like. Raises ConfigError.
    """
    is_device = _look(path, what)
    fd = _open(path, what, is_device=is_device, read_only=read_only, direct=direct)
    try:
        return _examine(fd, path, what, is_device, read_only, direct, any_content)
    except BaseException:
        os.close(fd)
        raise


def _look(path: str, what: str) -> bool:
    """Whether it is a block device. Before it is opened: opening a pipe would wait for its other end."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise ConfigError(
            f"{what}: {path} does not exist; an empty disk is made with: truncate -s 8G {path}"
        ) from None
    except OSError as error:
        raise ConfigError(f"{what}: {path} cannot be opened: {error.strerror}.") from error
    if stat.S_ISDIR(mode):
        raise ConfigError(f"{what}: {path} is a directory, not a disk image; --share gives it to the guest.")
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise ConfigError(f"{what}: {path} is neither a file nor a block device; name a disk image.")
    return stat.S_ISBLK(mode)


def _open(path: str, what: str, *, is_device: bool, read_only: bool, direct: bool) -> int:
    flags = os.O_CLOEXEC | os.O_NOCTTY | (os.O_RDONLY if read_only else os.O_RDWR)
    if is_device and not read_only:
        flags |= os.O_EXCL  # refuses a device that is mounted
    if direct:
        flags |= os.O_DIRECT
    try:
        return os.open(path, flags)
    except OSError as error:
        raise ConfigError(f"{what}: {_refusal(path, error, read_only, direct)}") from error


def _refusal(path: str, error: OSError, read_only: bool, direct: bool) -> str:
    if error.errno == errno.EBUSY:
        return f"{path} is in use on this host, mounted or by another machine; unmount it, or use it with ro."
    if error.errno == errno.EINVAL and direct:
        return f"{path} is on a file system without O_DIRECT; leave direct away."
    denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    if denied and not read_only and os.access(path, os.R_OK):
        return f"{path} cannot be written ({error.strerror}); use it with ro, or make it writable."
    return f"{path} cannot be opened: {error.strerror}."


def _examine(
    fd: int, path: str, what: str, is_device: bool, read_only: bool, direct: bool, any_content: bool
) -> DiskImage:
    size = os.lseek(fd, 0, os.SEEK_END)
    _check_size(path, what, size)
    _lock(fd, path, what, read_only)
    block_size, physical = SECTOR, 4096
    if is_device:
        if not read_only and _device_number(fd, _BLKROGET):
            raise ConfigError(f"{what}: {path} is a read-only device; use it with ro.")
        block_size, physical = _device_number(fd, _BLKSSZGET), _device_number(fd, _BLKPBSZGET)
    direct_block = _direct_block(fd, path, what, size) if direct else 0
    image = DiskImage(
        fd,
        size,
        read_only=read_only,
        is_device=is_device,
        block_size=block_size,
        physical=physical,
        direct_block=direct_block,
    )
    if not any_content:
        _check_format(image, path, what)
    return image


def _check_size(path: str, what: str, size: int) -> None:
    if not size:
        raise ConfigError(f"{what}: {path} is empty; give it a size with: truncate -s 8G {path}")
    if size % SECTOR:
        raise ConfigError(
            f"{what}: {path} is {size} bytes long, not whole sectors of {SECTOR}; "
            f"fill the last one up with: truncate -s %{SECTOR} {path}"
        )


def _lock(fd: int, path: str, what: str, read_only: bool) -> None:
    try:
        free = imagelock.lock(fd, read_only=read_only)
    except OSError as error:
        raise ConfigError(
            f"{what}: {path} cannot be locked against a second machine ({error.strerror}); "
            "put it on a file system that has locks."
        ) from error
    if not free:
        raise ConfigError(
            f"{what}: {path} is in use by another machine; machines share an image when all have it with ro."
        )


def _device_number(fd: int, request: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, request, bytes(4)), "little")


def _direct_block(fd: int, path: str, what: str, size: int) -> int:
    """The smallest block that O_DIRECT takes here, found by trying."""
    buffer = memoryview(mmap.mmap(-1, _LARGEST_BLOCK))
    block = SECTOR
    while block <= _LARGEST_BLOCK:
        try:
            os.preadv(fd, [buffer[:block]], 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise ConfigError(f"{what}: {path} cannot be read: {error.strerror}.") from error
            block *= 2
            continue
        if size % block:
            raise ConfigError(
                f"{what}: with direct {path} must be whole blocks of {block} bytes; leave direct away, "
                f"or fill the last one up with: truncate -s %{block} {path}"
            )
        return block
    raise ConfigError(f"{what}: {path} cannot be read with O_DIRECT; leave direct away.")


def _check_format(image: DiskImage, path: str, what: str) -> None:
    first = bytearray(SECTOR)
    try:
        image.read([memoryview(first)], 0)
    except OSError as error:
        raise ConfigError(f"{what}: {path} cannot be read: {error.strerror}.") from error
    for offset, magic, name in _FORMATS:
        if first.startswith(magic, offset):
            raise ConfigError(
                f"{what}: {path} is a {name} image, and disks here are raw; convert it with "
                f"qemu-img convert -O raw, export it with qemu-storage-daemon --export type=fuse, "
                "or say format=raw if the guest shall see it as it is."
            )
    for magic, command in _COMPRESSED:
        if first.startswith(magic):
            raise ConfigError(
                f"{what}: {path} is compressed; unpack it with {command}, "
                "or say format=raw if the guest shall see it as it is."
            )
