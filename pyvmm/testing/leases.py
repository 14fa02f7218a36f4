# SPDX-License-Identifier: Apache-2.0
"""What guests of several processes share: memory, context ids, taps. Held by locks on files.

A lock goes with the process that holds it, however that ends; a file without one is nobody's.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pyvmm.errors import HostError
from pyvmm.lab import store

MiB = 1 << 20
_OVERHEAD = 96 * MiB  # what pyvmm itself takes beside a guest's memory
_SHARE = 0.9  # of the host's available memory, for all guests
_FIRST_CID = 3000
_CIDS = 4096
_TAPS = 256
_POLL = 0.1
_FOLDERS = "leases-"


class Lease:
    """Something held until ``release``."""

    def __init__(self, fd: int, path: Path, released: Callable[[], None]) -> None:
        self._fd = fd
        self._path = path
        self._released = released

    def release(self) -> None:
        """Give it back. Idempotent."""
        with store.locked(self._path.with_name("lock")):
            if self._fd >= 0:
                self.discard()
                self._released()

    def discard(self) -> None:
        """Remove the file; for who has the folder's lock."""
        self._path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1


class Leases:
    """The leases of one place for guests (``name``), for all test processes of this user."""

    def __init__(self, name: str, available: int, most: int | None, base: Path | None = None) -> None:
        self._folder = (base or store.runtime_dir()) / f"{_FOLDERS}{name.replace(':', '-')}"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._available = available
        self._most = most
        self._held = 0

    def memory(self, size: int, timeout: float) -> Lease:
        """Room for a guest of ``size`` bytes: waits until others have ended, when there is none.

        A process that holds some already never waits, since two such could wait for each other; nor does
        anybody while there are no others. Raises HostError after ``timeout`` seconds.
        """
        limit = time.monotonic() + timeout
        while True:
            lease = self._try_memory(size + _OVERHEAD)
            if lease is not None:
                return lease
            if time.monotonic() > limit:
                raise HostError(
                    f"no memory for one more guest became free within {timeout:g} s: other tests hold it"
                )
            time.sleep(_POLL)

    def cid(self) -> tuple[str, Lease]:
        """A context id for vsock that no other test's guest has."""
        return self._first("cid", (str(_FIRST_CID + number) for number in range(_CIDS)))

    def tap(self) -> tuple[str, Lease]:
        """The name of a tap that no other test's guest has."""
        return self._first("tap", (f"pyvmm{number}" for number in range(_TAPS)))

    def _first(self, kind: str, names: Iterator[str]) -> tuple[str, Lease]:
        with store.locked(self._folder / "lock"):
            for name in names:
                lease = _take(self._folder / f"{kind}-{name}", b"")
                if lease is not None:
                    return name, lease
        raise HostError(f"every {kind} for guests of tests is taken")

    def _try_memory(self, size: int) -> Lease | None:
        with store.locked(self._folder / "lock"):
            others = list(self._others())
            # The first one sees how much there is while no guest of a test has any.
            available = min((budget for budget, _ in others), default=self._available)
            room = sum(taken for _, taken in others) + size <= available * _SHARE
            slots = self._most is None or len(others) < self._most
            if others and not (room and slots) and not self._held:
                return None
            number = 0
            while True:
                path = self._folder / f"memory-{os.getpid()}-{number}"
                lease = _take(path, f"{available} {size}".encode(), self._returned)
                if lease is not None:
                    self._held += 1
                    return lease
                number += 1

    def _returned(self) -> None:
        self._held -= 1

    def _others(self) -> Iterator[tuple[int, int]]:
        """Budget and size of every lease that somebody holds; the rest are removed."""
        for path in self._folder.glob("memory-*"):
            if _discarded(path):
                continue
            try:
                budget, size = path.read_text().split()
            except (OSError, ValueError):
                continue  # given back this moment
            yield int(budget), int(size)


def sweep() -> None:
    """Remove what processes that were killed have left, all leases of this user."""
    for folder in store.runtime_dir().glob(f"{_FOLDERS}*"):
        with store.locked(folder / "lock"):
            for path in folder.glob("*-*"):
                _discarded(path)


def _discarded(path: Path) -> bool:
    """Whether nobody held this lease, which is removed then. Under the folder's lock."""
    lease = _take(path, None)
    if lease is None:
        return False
    lease.discard()
    return True


def _take(path: Path, content: bytes | None, released: Callable[[], None] = lambda: None) -> Lease | None:
    """Lock ``path`` and write ``content``; None when another holds it. Under the folder's lock."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    if content is not None:
        os.ftruncate(fd, 0)
        os.write(fd, content)
    return Lease(fd, path, released)


def main(holder: int) -> None:
    """What the guardian of the process ``holder`` does last, as its child: wait for its end, and sweep."""
    while os.getppid() == holder:  # it closes its files one by one, those with locks maybe last
        time.sleep(_POLL)
    sweep()


if __name__ == "__main__":
    main(int(sys.argv[1]))
