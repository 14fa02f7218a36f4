# SPDX-License-Identifier: Apache-2.0
"""Accesses that the run loop in C answers by a function in C, without Python and without its GIL.

A driver that is interrupted asks its device why, and acknowledges it: two exits at least, and just then the
thread that interrupted it often has the GIL. Registers of that kind are words that both sides change by
atomic operations. Python has the rest of their device, and answers these, too, whenever the C does not: where
there is no native module, and while exits are traced.
"""

from __future__ import annotations

import ctypes
import threading

from pyvmm.errors import BusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.mmio.ranges import Range

#: Of one bus: more than there are places for such devices.
_MOST = 64
_NO_ADDRESS = 2**64 - 1


class _Direct(ctypes.Structure):
    """``struct direct`` of _native_run.c."""

    _fields_ = (
        ("first", ctypes.c_uint64),
        ("last", ctypes.c_uint64),
        ("answer", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
        ("accesses", ctypes.c_void_p),
    )


class _Directs(ctypes.Structure):
    """``struct directs``, with room."""

    _fields_ = (
        ("first", ctypes.c_uint64),
        ("last", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("all", _Direct * _MOST),
    )


class DirectAnswers:
    """Of one bus. ``address`` is where the run loop finds them."""

    def __init__(self) -> None:
        self._shared = _Directs(first=_NO_ADDRESS)
        self._first = _NO_ADDRESS  # what is shared while nobody watches
        self._lock = threading.Lock()
        self._watchers: set[object] = set()
        self._kept: list[object] = []
        self.address = ctypes.addressof(self._shared)

    def add(self, where: Range, function: int, context: int, accesses: ctypes.c_uint64) -> None:
        """Answer accesses within ``where`` by ``function(context, offset, length, is_write, data)``.

        Both are addresses and live as long as vCPUs run, of which none does yet. See ``direct_function`` of
        _native_run.c. What is answered is counted in ``accesses``. Raises BusError when there are too many.
        """
        count = self._shared.count
        if count == _MOST:
            raise BusError(f"There is room for {_MOST} ranges that are answered directly, not for {where}.")
        counter = ctypes.addressof(accesses)
        self._shared.all[count] = _Direct(where.base, where.last, function, context, counter)
        self._kept.append(accesses)
        self._first = min(self._first, where.base)
        self._shared.last = max(self._shared.last, where.last)
        self._shared.count = count + 1
        self._share_first()

    def stop(self, watcher: object) -> None:
        """Leave all accesses to Python from now on: ``watcher`` wants to see them. Idempotent; any thread."""
        with self._lock:
            self._watchers.add(watcher)
            self._share_first()

    def resume(self, watcher: object) -> None:
        """Go on once no other watcher is left. Idempotent; any thread."""
        with self._lock:
            self._watchers.discard(watcher)
            self._share_first()

    def _share_first(self) -> None:
        """The one thing that changes while vCPUs run, whose threads look at any moment.

        Where Python stores it byte by byte they may see a mixture of the two, which is no less than the real
        one: then some accesses are left to Python.
        """
        self._shared.first = _NO_ADDRESS if self._watchers else self._first
