# SPDX-License-Identifier: Apache-2.0
"""Initramfs archives in the newc format.

The format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Written here
rather than by cpio(1), so that root-owned files and device nodes need no root, and the same input gives the
same bytes.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

_TRAILER = "TRAILER!!!"


class Initramfs:
    """An archive under construction. Paths have no leading slash; every owner is root."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, bytes, int]] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def paths(self) -> list[str]:
        """Everything in it, parents before children."""
        return sorted(self._entries)

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory; one that is there already takes the new mode."""
        self._add(path, stat.S_IFDIR | mode, b"")

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._add(path, stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, stat.S_IFLNK | 0o777, os.fsencode(target))

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device node."""
        self._add(path, stat.S_IFCHR | mode, b"", os.makedev(major, minor))

    def copy(self, source: Path, path: str) -> None:
        """Add a file, a symbolic link, or a directory with all it holds, from the machine."""
        info = source.lstat()
        if stat.S_ISLNK(info.st_mode):
            self.symlink(path, os.fsdecode(source.readlink()))
        elif stat.S_ISDIR(info.st_mode):
            self.directory(path)
            for child in sorted(source.iterdir()):
                self.copy(child, f"{path}/{child.name}")
        else:
            self.file(path, source.read_bytes(), 0o755 if info.st_mode & 0o100 else 0o644)

    def pack(self) -> bytes:
        """The archive, uncompressed."""
        parts = [
            self._header(i, name, *entry) for i, (name, entry) in enumerate(sorted(self._entries.items()), 1)
        ]
        parts.append(self._header(0, _TRAILER, 0, b"", 0))
        return b"".join(parts)

    def _add(self, path: str, mode: int, data: bytes, device: int = 0) -> None:
        if not path or path.startswith("/"):
            raise ValueError(f"{path!r} is not a path relative to the root of the archive")
        parent = os.path.dirname(path)
        if parent and parent not in self._entries:
            self.directory(parent)
        self._entries[path] = (mode, data, device)

    @staticmethod
    def _header(inode: int, name: str, mode: int, data: bytes, device: int) -> bytes:
        encoded = os.fsencode(name) + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (
            inode, mode, 0, 0, links, 0, len(data), 0, 0, os.major(device), os.minor(device), len(encoded), 0,
        )  # fmt: skip
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        return _pad(head) + _pad(data)


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
