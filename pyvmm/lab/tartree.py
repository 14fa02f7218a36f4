# SPDX-License-Identifier: Apache-2.0
"""A root file system under construction as a tar archive, so that owners and modes need no root.

Made of Debian packages, whose files keep their owners, and of files of our own, which are root's.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from pyvmm.errors import HostError

_MERGED = ("bin", "sbin", "lib")  # links to their namesakes in usr


class TarTree:
    """Entries by path, without leading slash; a later one takes the place of an earlier one."""

    def __init__(self, left_out: Iterable[str] = ()) -> None:
        """``left_out``: directories whose content packages need not bring."""
        self._entries: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
        self._left_out = tuple(f"{path}/" for path in left_out)
        for name in _MERGED:
            self.directory(f"usr/{name}")
            self.symlink(name, f"usr/{name}")

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def paths(self) -> list[str]:
        """Everything in it, parents before children."""
        return sorted(self._entries)

    def read(self, path: str) -> bytes:
        """A regular file's content. Raises KeyError when there is none."""
        return self._entries[path][1]

    def add_package(self, deb: Path) -> list[str]:
        """Add a package's files; returns their paths. Raises HostError when it cannot be read."""
        added = [self._add_member(member, data) for member, data in members(deb, "--fsys-tarfile")]
        return [path for path in added if path]

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory."""
        self._put(path, tarfile.DIRTYPE, mode)

    def file(self, path: str, text: str | bytes, mode: int = 0o644, *, group: int = 0) -> None:
        """Add a regular file."""
        data = text.encode() if isinstance(text, str) else text
        self._put(path, tarfile.REGTYPE, mode, data).gid = group

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._put(path, tarfile.SYMTYPE, 0o777).linkname = target

    def write(self, path: Path) -> None:
        """Write the archive."""
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
            for _, (info, data) in sorted(self._entries.items()):
                tar.addfile(info, io.BytesIO(data))

    def _add_member(self, member: tarfile.TarInfo, data: bytes) -> str:
        path = _merged(member.name)
        if not path or path in _MERGED or f"{path}/".startswith(self._left_out):
            return ""
        if member.isdir() and path in self._entries:
            return path
        if member.islnk():  # a copy does as well
            original, data = self._entries[_merged(member.linkname)]
            member.mode, member.type, member.size, member.linkname = (
                original.mode,
                tarfile.REGTYPE,
                len(data),
                "",
            )
        member.name = path
        self._entries[path] = (member, data)
        return path

    def _put(self, path: str, kind: bytes, mode: int, data: bytes = b"") -> tarfile.TarInfo:
        parent = os.path.dirname(path)
        if parent and parent not in self._entries:
            self.directory(parent)
        info = tarfile.TarInfo(path)
        info.type, info.mode, info.size = kind, mode, len(data)
        self._entries[path] = (info, data)
        return info


def members(deb: Path, part: str) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """The members of one part of a package (``--fsys-tarfile`` or ``--ctrl-tarfile``), with their content.

    Raises HostError when it cannot be read.
    """
    with subprocess.Popen(["dpkg-deb", part, str(deb)], stdout=subprocess.PIPE) as source:
        assert source.stdout
        try:
            with tarfile.open(fileobj=source.stdout, mode="r|") as tar:
                for member in tar:
                    file = tar.extractfile(member) if member.isreg() else None
                    yield member, file.read() if file else b""
        except tarfile.TarError as e:
            raise HostError(f"The package {deb.name} cannot be read: {e}.") from e


def _merged(name: str) -> str:
    """A package's path as it is on a system whose /bin, /sbin and /lib are links into /usr."""
    path = os.path.normpath(name).lstrip("/")
    if path == ".":
        return ""
    return f"usr/{path}" if path.split("/")[0] in _MERGED and "/" in path else path
