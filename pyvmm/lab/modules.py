# SPDX-License-Identifier: Apache-2.0
"""Kernel modules as files: which others one depends on, and their bytes, without depmod and without root."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable
from pathlib import Path

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
        found = _DEPENDS.search(self.content(name))
        return [part.replace("-", "_") for part in found[1].decode().split(",") if part] if found else []

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
