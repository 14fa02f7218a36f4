# SPDX-License-Identifier: Apache-2.0
"""The MMIO bus: which device answers at which guest physical address.

Writers, under a lock, make an immutable table and publish it with one assignment. Readers take the table
with one load and no lock, and bisect in it. Mappings never overlap, so its sorted bases are all the interval
map that is needed.

How a mapping becomes quiet. A reader takes the device's lock and then looks whether the table it searched
is still the published one; if not, it starts again. A writer publishes first and then takes and drops the
device's lock. So whoever was inside has left, and whoever was on the way in sees the new table: once
``unmap`` or ``move`` returns, no access through the old place is in the device, nor ever will be. Leaving
out the second look would lose the readers between the bisect and the lock.

``_native_run.c`` is another reader, by the same rules.
"""

from __future__ import annotations

import ctypes
import threading
from bisect import bisect_right
from struct import pack

from pyvmm.errors import BusError
from pyvmm.mmio.direct import DirectAnswers
from pyvmm.mmio.ranges import Range
from pyvmm.mmio.regs import RegisterDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from pyvmm.mmio.regs import Readers, Writers

    After = Callable[[], None] | None

    class BusDevice(Protocol):
        """The part of a device that the bus uses; ``pyvmm.devices.base.Device`` states the contract."""

        lock: threading.Lock

        def read(self, offset: int, size: int) -> int: ...

        def write(self, offset: int, size: int, value: int) -> After: ...

        def decode(self, offset: int, size: int, is_write: bool, value: int) -> tuple[str, str]: ...

    #: How an access gets into a device: its lock's acquire and release, its read and write, its accessors,
    #: the mapping's counter. _native_run.c knows the order.
    Way = tuple[
        Callable[[], object],
        Callable[[], object],
        Callable[[int, int], int],
        Callable[[int, int, int], After],
        Readers,
        Writers,
        list[int],
    ]
    #: Bases, last addresses, ways and mappings, in address order; then, as _native_run.c wants them, bases
    #: and last addresses again, and where it counts accesses.
    Table = tuple[tuple[int, ...], tuple[int, ...], tuple[Way, ...], tuple["Mapping", ...], bytes]

_PAGE_SHIFT = 12
_COUNTED_PAGES = 64


class Unclaimed:
    """Accesses that no device took, counted.

    ``total`` counts all of them; ``straddling`` those that touched a mapping but crossed its edge; ``pages``
    maps a page's base address to its count, for the first 64 pages a guest touched.
    """

    __slots__ = ("_lock", "pages", "straddling", "total")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.total = 0
        self.straddling = 0
        self.pages: dict[int, int] = {}

    def count(self, address: int, *, straddles: bool) -> None:
        """One more at ``address``. Callable from any thread."""
        page = address >> _PAGE_SHIFT << _PAGE_SHIFT
        with self._lock:
            self.total += 1
            self.straddling += straddles
            if page in self.pages or len(self.pages) < _COUNTED_PAGES:
                self.pages[page] = self.pages.get(page, 0) + 1


class Mapping:
    """A device's place on a bus. Made by :meth:`Bus.map`; ``range`` is where it is, or was last."""

    __slots__ = ("_bus", "_counter", "_from_c", "counted_at", "device", "name", "range", "way")

    def __init__(self, bus: Bus, where: Range, device: BusDevice, name: str) -> None:
        self._bus = bus
        self.range = where
        self.device = device
        self.name = name
        # Accesses through Bus.read and Bus.write, which the device's lock guards, and those from C.
        self._counter = [0]
        self._from_c = ctypes.c_uint64()
        self.way: Way = (
            device.lock.acquire,
            device.lock.release,
            device.read,
            device.write,
            *(device.accessors() if isinstance(device, RegisterDevice) else ({}, {})),
            self._counter,
        )
        self.counted_at = ctypes.addressof(self._from_c)

    @property
    def accesses(self) -> int:
        """How many there were so far."""
        return self._counter[0] + self._from_c.value

    def unmap(self) -> None:
        """Take the device off the bus and wait until no access is inside it. Idempotent.

        Call without the device's lock: a handler asks for this through its ``After``.
        """
        self._bus._unmap(self)
        self._quiesce()

    def move(self, new_base: int) -> None:
        """Answer at ``new_base`` instead, as one step, and wait until no access by the old address is inside.

        Raises BusError, and stays where it is, when the place is taken or does not exist, or when the
        mapping is off the bus. ``new_base`` is often the guest's choice (a BAR): catch it there.
        """
        self._bus._move(self, Range(new_base, self.range.size))
        self._quiesce()

    def answer_directly(self, offset: int, size: int, function: int, context: int) -> None:
        """Have a function in C answer accesses within ``size`` bytes from ``offset`` on: see DirectAnswers.

        Before the guest runs, and for a mapping that stays where it is.
        """
        self._bus.direct.add(Range(self.range.base + offset, size), function, context, self._from_c)

    def _quiesce(self) -> None:
        with self.device.lock:
            pass

    def __str__(self) -> str:
        return f"{self.name} ({self.range})"


class Bus:
    """Guest physical addresses to devices.

    Locks: the writer lock is never held while calling out. ``read`` and ``write`` call the device with its
    own lock held, and what a write returned with none. Whatever a guest does comes back as 0 and a count
    in ``unclaimed``.
    """

    __slots__ = ("_write_lock", "direct", "published", "unclaimed")

    def __init__(self) -> None:
        self._write_lock = threading.Lock()
        #: Its one entry is what is published; replaced, never changed.
        self.published: list[Table] = [((), (-1,), (), (), b"")]
        #: What needs neither the table nor Python.
        self.direct = DirectAnswers()
        self.unclaimed = Unclaimed()

    def map(self, base: int, size: int, device: BusDevice, *, name: str) -> Mapping:
        """Put ``device`` at ``base``, ``size`` bytes. Raises BusError on overlap, zero size and wrap."""
        mapping = Mapping(self, Range(base, size), device, name)
        with self._write_lock:
            self._insert(mapping, mapping.range, self.published[0][3])
        return mapping

    def read(self, address: int, size: int) -> int:
        """Value of ``size`` (1, 2, 4 or 8) bytes at ``address``; 0 where there is nothing."""
        published = self.published
        while True:
            table = published[0]
            bases, lasts, ways, _, _ = table
            at = bisect_right(bases, address) - 1
            if address + size - 1 > lasts[at]:
                self._count_unclaimed(table, at, address, size)
                return 0
            # Not `with`: on an emulated RISC-V host that costs a fifteenth of a whole exit.
            acquire, release, read, _, readers, _, counter = ways[at]
            acquire()
            try:
                if published[0] is table:
                    counter[0] += 1
                    offset = address - bases[at]
                    reader = readers.get(offset << 4 | size)
                    return read(offset, size) if reader is None else reader()
            finally:
                release()

    def write(self, address: int, size: int, value: int) -> None:
        """Store ``value``, which fits ``size``; then run what the device asked to be run without its lock."""
        published = self.published
        while True:
            table = published[0]
            bases, lasts, ways, _, _ = table
            at = bisect_right(bases, address) - 1
            if address + size - 1 > lasts[at]:
                self._count_unclaimed(table, at, address, size)
                return
            acquire, release, _, write, _, writers, counter = ways[at]
            acquire()
            try:
                if published[0] is not table:
                    continue
                counter[0] += 1
                offset = address - bases[at]
                writer = writers.get(offset << 4 | size)
                after = write(offset, size, value) if writer is None else writer(value)
            finally:
                release()
            if after is not None:
                after()
            return

    def find(self, address: int) -> Mapping | None:
        """The mapping that holds ``address``."""
        bases, lasts, _, mappings, _ = self.published[0]
        at = bisect_right(bases, address) - 1
        return mappings[at] if address <= lasts[at] else None

    def describe(self) -> list[tuple[Range, str]]:
        """Range and name of every mapping, in address order."""
        return [(mapping.range, mapping.name) for mapping in self.published[0][3]]

    def accesses(self) -> dict[str, int]:
        """How many accesses every mapping that is on the bus has had, by name.

        Only those that came over the bus: not doorbells, nor what ``pyvmm.shortcut`` takes off it.
        """
        counts: dict[str, int] = {}
        for mapping in self.published[0][3]:
            counts[mapping.name] = counts.get(mapping.name, 0) + mapping.accesses
        return counts

    def _count_unclaimed(self, table: Table, at: int, address: int, size: int) -> None:
        bases, lasts = table[0], table[1]
        begins_inside = address <= lasts[at]
        ends_inside = at + 1 < len(bases) and bases[at + 1] < address + size
        self.unclaimed.count(address, straddles=begins_inside or ends_inside)

    def _insert(self, mapping: Mapping, where: Range, others: tuple[Mapping, ...]) -> None:
        at = bisect_right(others, where.base, key=_base_of)
        for neighbour in others[max(at - 1, 0) : at + 1]:
            if neighbour.range.overlaps(where):
                raise BusError(f"{mapping.name} ({where}) overlaps {neighbour}.")
        mapping.range = where
        self._publish((*others[:at], mapping, *others[at:]))

    def _others(self, mapping: Mapping) -> tuple[Mapping, ...] | None:
        """What is on the bus beside ``mapping``; None when that is not."""
        mappings = self.published[0][3]
        others = tuple(other for other in mappings if other is not mapping)
        return None if len(others) == len(mappings) else others

    def _unmap(self, mapping: Mapping) -> None:
        with self._write_lock:
            others = self._others(mapping)
            if others is not None:
                self._publish(others)

    def _move(self, mapping: Mapping, where: Range) -> None:
        with self._write_lock:
            others = self._others(mapping)
            if others is None:
                raise BusError(f"{mapping.name} cannot move to {where}: it is not on the bus.")
            self._insert(mapping, where, others)

    def _publish(self, mappings: tuple[Mapping, ...]) -> None:
        bases = tuple(mapping.range.base for mapping in mappings)
        lasts = tuple(mapping.range.last for mapping in mappings)
        self.published[0] = (
            bases,
            # Below every mapping bisect yields index -1: the last entry, which no address is within.
            (*lasts, -1),
            tuple(mapping.way for mapping in mappings),
            mappings,
            pack(f"{3 * len(mappings)}Q", *bases, *lasts, *(mapping.counted_at for mapping in mappings)),
        )


def _base_of(mapping: Mapping) -> int:
    return mapping.range.base
