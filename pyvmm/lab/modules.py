# SPDX-License-Identifier: Apache-2.0
"""Kernel modules as files: which others one depends on, and their bytes, without depmod and without root."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable
from pathlib import Path

from pyvmm.cpio import Initramfs

SOFT_DEPENDENCIES = {"crypto-crc32c": "crc32c_generic"}
"""Algorithms that modules ask for by the name of the algorithm, and the module that has each."""
_SOFT = re.compile(rb"(?:^|\0)softdep=pre: ([^\0]*)\0")
_DEPENDS = re.compile(rb"(?:^|\0)depends=([^\0]*)\0")


class ModuleTree:
    """The modules below one directory, by module name (always with underscores)."""

    def __init__(self, directory: Path) -> None:
        self._paths = {_name(path): path for path in sorted(directory.rglob("*.ko*"))}

    def load_order(self, names: Iterable[str]) -> list[str]:
        """``names`` and what they depend on, each after its dependencies.

        A name that is no file here is left out: the kernel has it built in, or not at all.
        """
        order: list[str] = []
        for name in names:
            self._visit(name.replace("-", "_"), order)
        return order

    def depends(self, name: str) -> list[str]:
        """Direct dependencies of a module that is a file here."""
        content = self.content(name)
        hard, soft = _DEPENDS.search(content), _SOFT.search(content)
        names = hard[1].decode().split(",") if hard else []
        names += [SOFT_DEPENDENCIES.get(word, word) for word in soft[1].decode().split()] if soft else []
        return [part.replace("-", "_") for part in names if part]

    def install(self, fs: Initramfs, directory: str, names: Iterable[str]) -> None:
        """Put ``names`` and what they depend on into an archive, for busybox's modprobe."""
        order = self.load_order(names)
        for name in order:
            fs.file(f"{directory}/{name}.ko", self.content(name))
        lines = [
            f"{name}.ko: {' '.join(f'{other}.ko' for other in reversed(self.load_order([name])[:-1]))}\n"
            for name in order
        ]
        fs.file(f"{directory}/modules.dep", "".join(lines).encode())

    def content(self, name: str) -> bytes:
        """The module's ELF file, decompressed."""
        path = self._paths[name]
        data = path.read_bytes()
        return lzma.decompress(data) if path.suffix == ".xz" else data

    def _visit(self, name: str, order: list[str]) -> None:
        if name in order or name not in self._paths:
            return
        for other in self.depends(name):
            self._visit(other, order)
        order.append(name)


def _name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")
