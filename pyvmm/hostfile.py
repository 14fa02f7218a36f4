# SPDX-License-Identifier: Apache-2.0
"""Files that the user asked pyvmm to write."""

from __future__ import annotations

import os

from pyvmm.errors import ConfigError


def create(what: str, path: str) -> int:
    """A descriptor for writing ``what`` to ``path``, emptied first. Raises ConfigError with a sentence."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ConfigError(
            f"{what} cannot be written to {path}: {obstacle(path) or error.strerror}."
        ) from error


def write(what: str, path: str, data: bytes) -> None:
    """Make ``path`` hold ``data``. Raises ConfigError with a sentence."""
    fd = create(what, path)
    try:
        with open(fd, "wb") as file:
            file.write(data)
    except OSError as error:
        raise ConfigError(f"{what} cannot be written to {path}: {error.strerror}.") from error


def check(what: str, path: str) -> None:
    """Raise ConfigError when ``create`` would, as far as that can be seen without changing anything."""
    if problem := obstacle(path):
        raise ConfigError(f"{what} cannot be written to {path}: {problem}.")


def obstacle(path: str) -> str:
    """Why no file can be written, or made, at ``path``, and what to do; empty when nothing is seen."""
    if os.path.isdir(path):
        return "it is a folder; name a file in it"
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return f"there is no folder {folder}; make it, or name another one"
    if os.path.exists(path):
        return "" if os.access(path, os.W_OK) else "you may not write to it; name another file"
    return "" if os.access(folder, os.W_OK | os.X_OK) else "you may make no file there; name another one"
