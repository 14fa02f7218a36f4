# SPDX-License-Identifier: Apache-2.0
"""Python code of the machine for the lab: packed once per content, as byte code for the lab's Python."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyvmm
from pyvmm.errors import ConfigError, HostError
from pyvmm.lab import programs, store
from pyvmm.lab.image import compile_packages

TEST = (
    *("pytest", "pluggy", "iniconfig", "packaging", "pygments"),
    *("pytest-xdist", "execnet"),
    *("pexpect", "ptyprocess"),
)
"""Distributions that the tests need, all pure Python."""
_SENT = ("execnet/gateway_base.py", "xdist/remote.py")
"""Modules that pytest-xdist sends to its workers as source."""
_SKIPPED = (".pyc", ".so", ".pyi", ".pyd", ".exe")


def pack(distributions: Sequence[str], *, with_pyvmm: bool) -> tuple[str, str]:
    """Pack installed distributions, and pyvmm itself as it lies here.

    Returns the tar file and a name for its content.
    Raises ConfigError for a distribution that the running Python does not have.
    """
    files = {relative: path for name in distributions for relative, path in _distribution(name)}
    if with_pyvmm:
        files.update(_own())
    name = _digest(files)
    directory = store.build_once(f"python/{name}", lambda work: _build(files, work))
    return str(directory / "packages.tar"), name


def _own() -> Iterator[tuple[str, Path]]:
    top = Path(pyvmm.__file__).parent
    for path in sorted(top.rglob("*")):
        if path.is_file() and not path.name.endswith(_SKIPPED):
            yield f"pyvmm/{path.relative_to(top)}", path
    try:
        name = "pyvmm/_native.abi3.so"
        yield name, programs.native() / name
    except (ConfigError, HostError):
        pass  # it is as optional there as anywhere


def _distribution(name: str) -> Iterator[tuple[str, Path]]:
    try:
        files = importlib.metadata.distribution(name).files or []
    except importlib.metadata.PackageNotFoundError as e:
        raise ConfigError(f"{name} is not installed for this Python, so the lab cannot have it.") from e
    for file in files:
        if file.parts[0] != ".." and not file.name.endswith(_SKIPPED):
            yield str(file), Path(os.fspath(file.locate()))


def _digest(files: dict[str, Path]) -> str:
    total = hashlib.sha256("\0".join(_SENT).encode())
    for relative, path in sorted(files.items()):
        total.update(f"{relative}\0{path}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


def _build(files: dict[str, Path], work: Path) -> None:
    with store.scratch(work) as temp, tarfile.open(work / "packages.tar", "w") as tar:
        for number, base in enumerate(sorted({_base(*item) for item in files.items()})):
            part = temp / str(number)
            for relative, path in files.items():
                if _base(relative, path) == base:
                    (part / relative).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, part / relative)
            compile_packages(part, part, base)
            for relative in files.keys() & _SENT:
                if _base(relative, files[relative]) == base:
                    shutil.copyfile(files[relative], part / relative)
            for child in sorted(part.iterdir()):
                tar.add(child, child.name)


def _base(relative: str, path: Path) -> str:
    """The directory on the machine that ``relative`` starts from."""
    return str(path)[: -len(relative) - 1]
