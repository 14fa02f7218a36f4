# SPDX-License-Identifier: Apache-2.0
"""The packed virtqueue (virtio 1.2, section 2.8): one ring, where used descriptors overwrite available ones.

Both sides go around the ring with a wrap counter that starts at 1 and flips with every lap; a descriptor's
AVAIL and USED flags, compared with it, tell whose turn it is. Each side has four bytes in which it says
when it wants to hear from the other: a position with its wrap counter, and a mode.

What a hostile driver can do to it, and what stops it: see the split queue. Here nothing but the flags
counts what is available, so we count what is in flight ourselves: a ring of n never holds more than n.
"""

from __future__ import annotations

import struct

from pyvmm.devices.virtio.chain import INDIRECT, MAX_BYTES, MIXED, NEXT, WRITE, Chain, read_table
from pyvmm.devices.virtio.position import Position
from pyvmm.devices.virtio.queue import MAX_SIZE, area, queue_closed, wants_event
from pyvmm.errors import QueueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.virtio.queue import Frames, QueueSetup
    from pyvmm.memory import GuestMemory
    from pyvmm.ring import Ring

_AVAIL, _USED = 1 << 7, 1 << 15  # flags of a descriptor, next to those of every layout
_TURN = _AVAIL | _USED
_ENABLE, _DISABLE, _AT_DESCRIPTOR = 0, 1, 2  # modes of event suppression: the half above the position

_DESCRIPTOR = struct.Struct("<QIHH").unpack_from  # address, length, buffer id, flags
_USED_ELEMENT = struct.Struct("<IH").pack_into  # bytes written, buffer id
_FLAGS = struct.Struct("<H").unpack_from


class PackedQueue:
    """See Virtqueue. Raises QueueError for a size or addresses at which no queue can be."""

    __slots__ = (
        "_descriptors", "_driver_event", "_flags", "_indirect", "_load16", "_memory", "_notify_word", "_peek",
        "_peer32", "_rearm32", "_release16", "_release32", "event_idx", "position", "size",
    )  # fmt: skip

    frames: Frames | None = None

    def __init__(self, memory: GuestMemory, ring: Ring, setup: QueueSetup) -> None:
        size = setup.size
        if not 0 < size <= MAX_SIZE:
            raise QueueError(f"a packed virtqueue cannot have {size} descriptors")
        self.size = size
        self._memory = memory
        self.event_idx, self._indirect = setup.event_idx, setup.indirect
        self._descriptors, descriptors = area(memory, setup.desc, 16 * size, 16)
        _, self._driver_event = area(memory, setup.driver, 4, 4)
        _, self._notify_word = area(memory, setup.device, 4, 4)
        self._flags = descriptors + 14  # where the first descriptor's are
        self._load16: Callable[[int], int] = ring.load_acquire16
        self._release16: Callable[[int, int], object] = ring.store_release16
        self._release32: Callable[[int, int], object] = ring.store_release32
        self._rearm32: Callable[[int, int, int], int] = ring.rearm32
        self._peer32: Callable[[int], int] = ring.peer32
        self._peek: Callable[[memoryview, int], tuple[int, ...]] = _FLAGS
        self.position = Position(wrap=1, used_wrap=1)

    def pop(self) -> Chain | None:
        """The next buffer the driver made available, or None. Raises QueueError."""
        position = self.position
        at = position.next
        flags = self._load16(self._flags + 16 * at)  # pairs with the driver's barrier before the head's flags
        if flags & _TURN != (_AVAIL if position.wrap else _USED):
            return None
        chain = Chain(0, [], [], 1)
        size = self._walk(chain, self._descriptors, self.size, at)
        slots = chain.slots
        if position.in_flight + slots > self.size:
            raise QueueError("the driver made descriptors available that the device holds")
        if size > MAX_BYTES or chain.fault:
            raise chain.refusal(size)
        position.in_flight += slots
        at += slots
        if at >= self.size:
            at -= self.size
            position.wrap ^= 1
        position.next = at
        return chain

    def _walk(self, chain: Chain, table: memoryview | bytes, entries: int, at: int) -> int:
        """Add what the descriptors from ``at`` on say to ``chain``; returns its bytes.

        An indirect table, which is a copy, is a chain to its end: NEXT means nothing in it.
        """
        in_ring = table is self._descriptors
        base, end, view, read_only = self._memory.main
        readable, writable = chain.readable, chain.writable
        size = 0
        for count in range(1, entries + 1):
            address, length, ident, flags = _DESCRIPTOR(table, 16 * at)
            if flags & INDIRECT:
                if not in_ring or count > 1:
                    where = "a chain" if in_ring else "an indirect table"
                    raise QueueError(f"an indirect descriptor inside {where}")
                if not self._indirect or flags & NEXT:
                    raise QueueError("an indirect descriptor was chained or not negotiated")
                chain.head = ident
                inner = read_table(self._memory, address, length, self.size)
                return self._walk(chain, inner, length // 16, 0)
            if length:
                size += length
                if flags & WRITE:
                    whole, views = view, writable
                elif writable:
                    raise QueueError(MIXED)
                else:
                    whole, views = read_only, readable
                start = address - base
                if start >= 0 and start + length <= end:
                    views.append(whole[start : start + length])
                else:
                    chain.add(self._memory, address, length, flags & WRITE)
            if in_ring and not flags & NEXT:
                chain.head, chain.slots = ident, count
                return size
            at = at + 1 if at + 1 < entries else 0
        if in_ring:
            raise QueueError(f"a chain of more than {entries} descriptors")
        return size

    def complete(self, chain: Chain, written: int) -> None:
        """Give ``chain`` back, ``written`` bytes into its writable views. Its views end here.

        Chains come back in any order: the used descriptor goes where the device stands, and the driver knows
        by the buffer id how far that takes it.
        """
        # Pairs with the driver's barrier after it reads these flags.
        self._release16(*self._use(chain, written))

    def complete_all(self, completions: list[tuple[Chain, int]]) -> None:
        """Give several chains back at once: the driver sees all of them, or none yet.

        It looks at them in order, so the flags of the first one are what tells it of all.
        """
        for flags in reversed([self._use(chain, written) for chain, written in completions]):
            self._release16(*flags)

    def _use(self, chain: Chain, written: int) -> tuple[int, int]:
        """Write a used descriptor but for its flags: where they go, and what they are."""
        position, slots = self.position, chain.slots
        at = position.used
        flags = _TURN if position.used_wrap else 0
        _USED_ELEMENT(self._descriptors, 16 * at + 8, written, chain.head)
        place = self._flags + 16 * at
        at += slots
        if at >= self.size:
            at -= self.size
            position.used_wrap ^= 1
        position.used = at
        position.in_flight -= slots
        position.unsignalled += slots
        chain.close()
        return place, flags | WRITE if written else flags

    def should_interrupt(self) -> bool:
        """Whether the driver wants to hear of what was completed since the last call. Ask once a pass."""
        position = self.position
        count = position.unsignalled
        if not count:
            return False
        position.unsignalled = 0
        # Pairs with the driver's full barrier between asking for interrupts and looking at the ring again.
        event = self._peer32(self._driver_event)
        if not self.event_idx or event >> 16 != _AT_DESCRIPTOR:
            return event >> 16 != _DISABLE
        at = event & 0x7FFF
        if event >> 15 & 1 != position.used_wrap:  # in the lap before
            at -= self.size
        return wants_event(at, position.used, position.used - min(count, self.size))

    def pause_notify(self) -> None:
        """Tell the driver that it need not notify."""
        self._release32(self._notify_word, _DISABLE << 16)

    def resume_notify(self) -> bool:
        """Ask to hear of the next buffer. True when there is one already: then nothing is asked for."""
        at, wrap = self.position.next, self.position.wrap
        available = _AVAIL if wrap else _USED
        if self._peek(self._descriptors, 16 * at + 14)[0] & _TURN == available:  # unordered: pop looks again
            return True
        word = at | wrap << 15 | _AT_DESCRIPTOR << 16 if self.event_idx else _ENABLE << 16
        # Pairs with the driver's full barrier between the head's flags and its look at this word.
        if self._rearm32(self._notify_word, word, self._flags + 16 * at) & _TURN != available:
            return False
        if not self.event_idx:
            self.pause_notify()
        return True

    def close(self) -> None:
        """Let go of guest memory. No other method may be called after it; chains close by themselves."""
        self._descriptors.release()
        self._load16 = self._release16 = self._release32 = self._rearm32 = self._peer32 = queue_closed
        self._peek = queue_closed

    def state(self) -> dict[str, int]:
        """Positions in the ring with their wrap counters, and what should_interrupt has to look at yet."""
        position = self.position
        return {
            "available": position.next,
            "available_wrap": position.wrap,
            "used": position.used,
            "used_wrap": position.used_wrap,
            "unsignalled": position.unsignalled,
        }

    def load_state(self, state: dict[str, int]) -> None:
        """Go on from where ``state()`` was taken, on the same guest memory."""
        position = self.position
        position.next, position.used = state["available"] % self.size, state["used"] % self.size
        position.wrap, position.used_wrap = state["available_wrap"] & 1, state["used_wrap"] & 1
        position.unsignalled = state["unsignalled"]
