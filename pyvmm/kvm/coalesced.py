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
    from collections.abc import Callable, Iterator

_PAGE = 4096
_ENTRIES = uapi.COALESCED_MMIO_ENTRIES_OFFSET
#: The ring holds one entry less than this: equal indices mean empty.
CAPACITY = (_PAGE - _ENTRIES) // uapi.COALESCED_MMIO.size
_FIRST, _LAST = 0, 4


class CoalescedRing:
    """Consumer of the ring at ``address`` (:attr:`Vcpu.ring_address`); one for the whole machine.

    Lock order: ``lock`` before any device's lock. Stores keep the guest's order only if each is *carried out*
    before the next one is taken, whichever vCPU thread comes by; so hold ``lock`` around the whole loop::

        if not ring.empty():
            with ring.lock:
                for address, length, value in ring.drain(): ...

    ``empty`` needs no lock: an entry leaves the ring only after the consumer has come back for the next one.
    """

    __slots__ = ("_address", "_load", "_page", "_store", "lock")

    def __init__(
        self, address: int, load_acquire32: Callable[[int], int], store_release32: Callable[[int, int], None]
    ) -> None:
        self.lock = threading.Lock()
        self._address = address
        self._load = load_acquire32
        self._store = store_release32
        self._page = (ctypes.c_char * _PAGE).from_address(address)

    def empty(self) -> bool:
        """Whether every store so far has been carried out."""
        return self._load(self._address + _FIRST) == self._load(self._address + _LAST)

    def drain(self) -> Iterator[tuple[int, int, int]]:
        """Take what is there now, oldest first: (address, length in bytes, value).

        ``last`` is read once, so a guest that goes on storing cannot keep the loop from ending.
        """
        first = self._load(self._address + _FIRST)
        last = self._load(self._address + _LAST) % CAPACITY
        while first != last:
            offset = _ENTRIES + first * uapi.COALESCED_MMIO.size
            address, length, _, data = uapi.COALESCED_MMIO.unpack_from(self._page, offset)
            yield address, length, data & ((1 << 8 * length) - 1)
            first = (first + 1) % CAPACITY
            self._store(self._address + _FIRST, first)
