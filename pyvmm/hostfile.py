# SPDX-License-Identifier: Apache-2.0
"""Files that the user asked pyvmm to write."""

from __future__ import annotations

import os

from pyvmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def create(what: str, path: str) -> int:
    """A descriptor for writing ``what`` to ``path``, emptied first. Raises ConfigError with a sentence."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ConfigError(f"{what} cannot be written to {path}: {error.strerror}.") from error


def write(what: str, path: str, data: bytes) -> None:
    """Make ``path`` hold ``data``. Raises ConfigError with a sentence."""
    fd = create(what, path)
    try:
        with open(fd, "wb") as file:
            file.write(data)
    except OSError as error:
        raise ConfigError(f"{what} cannot be written to {path}: {error.strerror}.") from error


def keep_apart(inputs: Iterable[str | None], outputs: Iterable[str | None]) -> None:
    """Raise ConfigError when a file that is to be written is also one that is read: it would be lost."""
    read = [path for path in inputs if path is not None]
    for output in outputs:
        for path in read:
            if output is not None and os.path.exists(output) and os.path.samefile(output, path):
                raise ConfigError(
                    f"{output} would be written over, and the guest needs it; name another file."
                )
