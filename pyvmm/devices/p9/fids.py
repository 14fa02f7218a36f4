# SPDX-License-Identifier: Apache-2.0
"""Fids: the guest's numbers for files, each with one descriptor behind it.

Requests run on several threads. A fid never changes which file it is: opening, creating and walking in place
put another Fid under the number. So a request takes its fids once (``with fids.use(number) as fid``) and
works with what it got; a descriptor is closed when its number is gone and the last request let go of it.

Locks: the table's lock is held for a few dictionary operations at most, and never around a system call. A
Fid's ``turn`` is held around the system calls of what has a position or a buffer: directory listings, and
extended attributes being written. Nobody takes one of them while holding another.
"""

from __future__ import annotations

import errno
import os
import threading

from pyvmm.devices.p9.beneath import refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.p9.xattrs import ListedXattr, WrittenXattr


class Fid:
    """One file. It owns ``fd``: an O_PATH descriptor, or an open one when ``access`` is not None.

    ``access`` is O_RDONLY, O_WRONLY or O_RDWR; ``uid`` is whom the guest attached as, or None. ``xattr`` says
    that it stands for an extended attribute of the file instead. ``locked``: it may hold locks.
    """

    __slots__ = ("_table", "_users", "access", "fd", "locked", "turn", "uid", "xattr")

    def __init__(
        self,
        fd: int,
        uid: int | None,
        access: int | None = None,
        xattr: ListedXattr | WrittenXattr | None = None,
    ) -> None:
        self.fd = fd
        self.uid = uid
        self.access = access
        self.xattr = xattr
        self.locked = False
        self.turn = threading.Lock()
        self._users = 1  # the table's entry is one
        self._table: Fids | None = None

    def __enter__(self) -> Fid:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._table is not None:
            self._table.release(self)

    def opened(self) -> int:
        """The descriptor, open for input or output. Raises OSError (EBADF) when it is not."""
        if self.access is None or self.xattr is not None:
            raise refusal(errno.EBADF)
        return self.fd

    @property
    def writable(self) -> bool:
        """Whether ``fd`` is open for writing."""
        return self.access is not None and self.access != os.O_RDONLY


class Budget:
    """How many fids and owners of locks all sessions together may have: each has a descriptor."""

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()  # a leaf, taken under a table's
        self._left = limit

    def take(self) -> bool:
        """One more, unless there are too many."""
        with self._lock:
            if not self._left:
                return False
            self._left -= 1
            return True

    def give_back(self) -> None:
        """One less."""
        with self._lock:
            self._left += 1


class Fids:
    """The table of one session, on a ``budget``. ``on_close`` hears of fids that held locks when nobody uses
    them any more.
    """

    def __init__(self, budget: Budget, on_close: Callable[[Fid], None]) -> None:
        self._lock = threading.Lock()
        self._budget = budget
        self._on_close = on_close
        self._fids: dict[int, Fid] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._fids)

    def use(self, number: int) -> Fid:
        """The fid, held until its ``with`` block ends. Raises OSError (EBADF) when there is none."""
        with self._lock:
            fid = self._fids.get(number)
            if fid is None:
                raise refusal(errno.EBADF)
            fid._users += 1
            return fid

    def install(self, number: int, fid: Fid, *, instead_of: Fid | None = None) -> None:
        """Put ``fid`` under ``number``, which is free, or means ``instead_of`` now. Takes it over.

        Raises OSError and closes it when that is not so, and when there are too many.
        """
        with self._lock:
            code = self._objection(number, instead_of)
            if not code:
                fid._table = self
                self._fids[number] = fid
        if code:
            os.close(fid.fd)
            raise refusal(code)
        if instead_of is not None:
            self.release(instead_of)

    def _objection(self, number: int, instead_of: Fid | None) -> int:
        if self._closed:
            return errno.ECONNABORTED
        if self._fids.get(number) is not instead_of:
            return errno.EBADF
        if not self._budget.take():
            return errno.EMFILE
        return 0

    def forget(self, number: int) -> Fid:
        """Free the number. The fid is held until its ``with`` block ends. Raises OSError (EBADF)."""
        with self._lock:
            fid = self._fids.pop(number, None)
            if fid is None:
                raise refusal(errno.EBADF)
            return fid

    def count(self, wanted: Callable[[Fid], bool]) -> int:
        """How many there are of a kind."""
        with self._lock:
            return sum(map(wanted, self._fids.values()))

    def release(self, fid: Fid) -> None:
        """One user less."""
        with self._lock:
            fid._users -= 1
            last = not fid._users
        if last:
            if fid.locked:
                self._on_close(fid)
            os.close(fid.fd)
            self._budget.give_back()

    def clear(self) -> None:
        """Forget all numbers: the guest begins anew."""
        with self._lock:
            fids = list(self._fids.values())
            self._fids.clear()
        for fid in fids:
            self.release(fid)

    def close(self) -> None:
        """Forget all numbers, and take no new ones from requests that are still running."""
        with self._lock:
            self._closed = True
        self.clear()
