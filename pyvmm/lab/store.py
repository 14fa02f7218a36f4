# SPDX-License-Identifier: Apache-2.0
"""Where the lab keeps things: a cache of finished builds, and a private directory for what is running.

A build is made in a temporary directory and renamed into place, so a name in the cache is always a
complete build. A lock file beside it makes a second builder wait for the first instead of repeating it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pyvmm.errors import HostError

_KEPT_SECONDS = 7 * 24 * 3600
_KEPT_BUILDS = 64

Progress = Callable[[str], None]
"""Takes one line that says what is being done now."""


def quiet(_line: str) -> None:
    """The Progress of a caller who does not want one."""


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/pyvmm``: safe to delete whenever no lab host runs."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(base, "pyvmm")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as e:
        raise HostError(f"The cache directory {path} cannot be made: {e.strerror}.", e.errno or 0) from e
    return path


def runtime_dir() -> Path:
    """The directory of sockets and state files, closed to others.

    Its name is short, because paths of sockets end at 104 bytes.
    Raises HostError when somebody else owns the name, as can happen in a shared /tmp.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(base, "pyvmm") if base and os.access(base, os.W_OK) else Path(f"/tmp/pyvmm-{os.getuid()}")
    path.mkdir(mode=0o700, exist_ok=True)
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise HostError(f"{path} belongs to somebody else; remove it, or set XDG_RUNTIME_DIR.")
    if stat.S_IMODE(info.st_mode) & 0o077:
        path.chmod(0o700)
    return path


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (made when missing); ``waiting`` is called if it must wait.

    Whoever holds it may remove ``path``.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:  # else it was removed meanwhile, and locks out nobody
                yield
                return
        finally:
            os.close(fd)


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock on ``path``."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def recipe_key(*recipe: object) -> str:
    """A short name for everything that decides what a build contains."""
    return hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]


def build_once(name: str, make: Callable[[Path], None], progress: Progress = quiet) -> Path:
    """Return the cached build ``name``; ``make`` fills an empty directory when there is none yet.

    Builds under another recipe stay for a week after their last use: a running host may need them.
    """
    final = cache_dir() / name
    if _used(final):
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with locked(
        final.parent / f".{final.name}.lock", lambda: progress(f"waiting for another build of {name}")
    ):
        if not final.is_dir():
            _build(final, make)
            _prune(final.parent)
    return final


def _used(build: Path) -> bool:
    """Whether the build is there; if so, note that it is in use."""
    try:
        os.utime(build)
    except FileNotFoundError:
        return False
    return True


def _prune(kind: Path) -> None:
    """Delete builds, finished or broken off, that nobody used for long, and the oldest of very many."""
    builds = [(path.stat().st_mtime, path) for path in kind.iterdir() if path.is_dir()]
    for number, (used, path) in enumerate(sorted(builds, reverse=True)):
        if number >= _KEPT_BUILDS or time.time() - used > _KEPT_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _build(final: Path, make: Callable[[Path], None]) -> None:
    work = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        make(work)
        work.rename(final)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


@contextlib.contextmanager
def scratch(work: Path) -> Iterator[Path]:
    """A directory below a build in progress that is gone when the block ends."""
    path = work / "scratch"
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write atomically: readers see the old file or the new one."""
    temp = path.with_name(f".{path.name}.{os.getpid()}")
    temp.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    temp.replace(path)


def read_json(path: Path) -> Any:
    """The file's value, or None when it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
