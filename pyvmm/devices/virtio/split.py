# SPDX-License-Identifier: Apache-2.0
"""The split virtqueue (virtio 1.2, section 2.7): descriptor table, available ring, used ring.

What a hostile driver can do to it, and what stops it: descriptors that loop or lie (each is copied once
into integers, the copy is checked, and the walk is bounded); an available index that jumps (refused);
entries rewritten while they are read (only ever the guest's own loss).
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

_NO_INTERRUPT, _NO_NOTIFY = 1, 1  # flags of the available ring, of the used ring

_DESCRIPTOR = struct.Struct("<QIHH").unpack_from  # address, length, flags, next
_HEAD = struct.Struct("<H").unpack_from
_USED = struct.Struct("<II").pack_into  # head, bytes written


class SplitQueue:
    """See Virtqueue. Raises QueueError for a size or addresses at which no queue can be."""

    __slots__ = (
        "_available", "_descriptors", "_indirect", "_load16", "_mask", "_memory", "_notify_word", "_peer16",
        "_rearm16", "_release16", "_suppress_word", "_take_index", "_used_index", "_used_ring", "event_idx",
        "position", "size",
    )  # fmt: skip

    frames: Frames | None = None

    def __init__(self, memory: GuestMemory, ring: Ring, setup: QueueSetup) -> None:
        size = setup.size
        if not 0 < size <= MAX_SIZE or size & (size - 1):
            raise QueueError(f"a split virtqueue cannot have {size} descriptors")
        self.size = size
        self._mask = size - 1
        self._memory = memory
        self.event_idx, self._indirect = setup.event_idx, setup.indirect
        self._descriptors, _ = area(memory, setup.desc, 16 * size, 16)
        self._available, driver = area(memory, setup.driver, 6 + 2 * size, 2)
        self._used_ring, device = area(memory, setup.device, 6 + 8 * size, 4)
        # Both rings begin with flags and the index, and end with the other side's event index.
        self._take_index, self._used_index = driver + 2, device + 2
        self._suppress_word = driver + 4 + 2 * size if setup.event_idx else driver
        self._notify_word = device + 4 + 8 * size if setup.event_idx else device
        self._load16: Callable[[int], int] = ring.load_acquire16
        self._release16: Callable[[int, int], object] = ring.store_release16
        self._rearm16: Callable[[int, int, int], int] = ring.rearm16
        self._peer16: Callable[[int], int] = ring.peer16
        self.position = Position()

    def pop(self) -> Chain | None:
        """The next buffer the driver made available, or None. Raises QueueError."""
        position = self.position
        at = position.next
        if at == position.seen and not self._look():
            return None
        (head,) = _HEAD(self._available, 4 + 2 * (at & self._mask))
        chain = Chain(head, [], [], 1)
        size = self._walk(chain, self._descriptors, self.size, head, self._indirect)
        if size > MAX_BYTES or chain.fault:
            raise chain.refusal(size)
        position.next = (at + 1) & 0xFFFF
        return chain

    def _look(self) -> bool:
        """Read the available index. It pairs with the driver's barrier between the entries and the index."""
        return self._saw(self._load16(self._take_index))

    def _saw(self, seen: int) -> bool:
        """The available index is ``seen``: whether there is a buffer."""
        position = self.position
        at = position.next
        if seen == at:
            position.seen = seen
            return False
        # The sum: stepping back into what is held is a jump, too.
        if ((seen - at) & 0xFFFF) + ((at - position.used) & 0xFFFF) > self.size:
            raise QueueError(f"the available index jumped from {position.seen} to {seen}")
        position.seen = seen
        return True

    def _walk(self, chain: Chain, table: memoryview | bytes, entries: int, index: int, indirect: bool) -> int:
        """Add what a table says to ``chain``; returns its bytes. ``indirect``: it may end in another one."""
        base, end, view, read_only = self._memory.main
        readable, writable = chain.readable, chain.writable
        size = 0
        for _ in range(entries):
            if index >= entries:
                raise QueueError(f"descriptor {index} of {entries} was named")
            address, length, flags, following = _DESCRIPTOR(table, 16 * index)
            if flags & INDIRECT:
                if not indirect or flags & NEXT:
                    raise QueueError("an indirect descriptor was nested, chained or not negotiated")
                inner = read_table(self._memory, address, length, self.size)
                return size + self._walk(chain, inner, length // 16, 0, False)
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
            if not flags & NEXT:
                return size
            index = following
        raise QueueError(f"a chain of more than {entries} descriptors: it loops")

    def complete(self, chain: Chain, written: int) -> None:
        """Give ``chain`` back, ``written`` bytes into its writable views. Its views end here."""
        used = self.position.used
        _USED(self._used_ring, 4 + 8 * (used & self._mask), chain.head, written)
        self.position.used = used = (used + 1) & 0xFFFF
        self._release16(self._used_index, used)  # pairs with the driver's barrier after it reads the index
        chain.close()

    def complete_all(self, completions: list[tuple[Chain, int]]) -> None:
        """Give several chains back at once: the driver sees all of them, or none yet."""
        used = self.position.used
        for chain, written in completions:
            _USED(self._used_ring, 4 + 8 * (used & self._mask), chain.head, written)
            used = (used + 1) & 0xFFFF
            chain.close()
        self.position.used = used
        self._release16(self._used_index, used)

    def should_interrupt(self) -> bool:
        """Whether the driver wants to hear of what was completed since the last call. Ask once a pass."""
        new, old = self.position.used, self.position.signalled
        if new == old:
            return False
        self.position.signalled = new
        # Pairs with the driver's full barrier between asking for interrupts and looking at the index again.
        word = self._peer16(self._suppress_word)
        return wants_event(word, new, old) if self.event_idx else not word & _NO_INTERRUPT

    def pause_notify(self) -> None:
        """Tell the driver that it need not notify. An event index left behind does so by itself."""
        if not self.event_idx:
            self._release16(self._notify_word, _NO_NOTIFY)

    def resume_notify(self) -> bool:
        """Ask to hear of the next buffer. True when there is one already: then nothing is asked for."""
        at = self.position.next
        if at != self.position.seen:
            return True
        # Pairs with the driver's full barrier between its index and its look at this word.
        seen = self._rearm16(self._notify_word, at if self.event_idx else 0, self._take_index)
        if not self._saw(seen):
            return False
        if not self.event_idx:
            self.pause_notify()
        return True

    def close(self) -> None:
        """Let go of guest memory. No other method may be called after it; chains close by themselves."""
        for view in (self._descriptors, self._available, self._used_ring):
            view.release()
        self._load16 = self._release16 = self._rearm16 = self._peer16 = queue_closed

    def state(self) -> dict[str, int]:
        """Free-running indices: the next to take, the next used one, the used one last told of."""
        position = self.position
        return {"available": position.next, "used": position.used, "signalled": position.signalled}

    def load_state(self, state: dict[str, int]) -> None:
        """Go on from where ``state()`` was taken, on the same guest memory."""
        position = self.position
        position.next = position.seen = state["available"] & 0xFFFF
        position.used, position.signalled = state["used"] & 0xFFFF, state["signalled"] & 0xFFFF
