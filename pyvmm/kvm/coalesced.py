# SPDX-License-Identifier: Apache-2.0
"""The coalesced-MMIO ring: guest stores that the kernel noted down instead of causing an exit each.

The kernel writes ``last`` and the entry before it; user space writes ``first``. Another vCPU's store may be
appended at any moment, so both indices must be read and written whole and in order: Python's own multi-byte
accesses are byte by byte on riscv64, hence the two functions that are passed in (``pyvmm.ring``).
"""

from __future__ import annotations

import ctypes
import threading

from pyvmm.kvm import uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

_PAGE = 4096
_ENTRIES = uapi.COALESCED_MMIO_ENTRIES_OFFSET
_ENTRY = uapi.COALESCED_MMIO.size
_VALUES = _ENTRIES + 16  # where the data of the first entry is
#: The ring holds one entry less than this: equal indices mean empty.
CAPACITY = (_PAGE - _ENTRIES) // _ENTRY
#: Where the indices are in the page. They fit into their first byte, which one load reads whole.
FIRST, LAST = 0, 4


class CoalescedRing:
    """Consumer of the ring at ``address`` (:attr:`Vcpu.ring_address`); one for the whole machine.

    For a machine whose only zone is one byte: every entry is a store of a byte to there. Lock order: the
    ring's lock comes before any device's.
    """

    __slots__ = ("_address", "_load", "_lock", "_store", "page")

    def __init__(
        self,
        address: int,
        load_acquire32: Callable[[int], int],
        store_release32: Callable[[int, int], object],
    ) -> None:
        self._lock = threading.Lock()
        self._address = address
        self._load = load_acquire32
        self._store = store_release32
        self.page = ring_page(address)

    def drain(self, carry_out: Callable[[bytes], T]) -> T | None:
        """Have the stores that are there now carried out, oldest first; what ``carry_out`` returned.

        They leave the ring after that, with the lock held throughout: whoever finds the ring empty, or comes
        by later, comes after them. ``last`` is read once, so a guest that goes on storing cannot keep this
        from ending. Any thread.
        """
        page = self.page
        with self._lock:
            first = self._load(self._address + FIRST)
            last = self._load(self._address + LAST) % CAPACITY
            if first == last:
                return None
            end = last if first < last else CAPACITY
            data = _values(page, first, end)
            if end != last:
                data += _values(page, 0, last)
            result = carry_out(data)
            self._store(self._address + FIRST, last)
            return result


def _values(page: ctypes.Array[ctypes.c_char], first: int, end: int) -> bytes:
    """The first data byte of each of these entries."""
    return page[_VALUES + first * _ENTRY : _ENTRIES + end * _ENTRY : _ENTRY]  # type: ignore[return-value]


def ring_page(address: int) -> ctypes.Array[ctypes.c_char]:
    """The ring as bytes. It is empty while those at FIRST and LAST are equal."""
    return (ctypes.c_char * _PAGE).from_address(address)
