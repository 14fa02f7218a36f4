# SPDX-License-Identifier: Apache-2.0
"""The driver's half of the two ring layouts, for fakes.driver. Every word of a ring can also be set raw."""

from __future__ import annotations

import struct

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 1 << 7, 1 << 15
ENABLE, DISABLE, AT_DESCRIPTOR = 0, 1, 2  # flags of a packed ring's event suppression


def encode(descriptors, *, packed=False, links=None, linked=False):
    """The bytes of a table of (address, length, flags). ``linked`` sets NEXT on all but the last.

    ``links`` are the 16-bit fields beside the flags; unless given, each names the descriptor that follows.
    """
    table = b""
    for index, (address, length, flags) in enumerate(descriptors):
        following = flags | NEXT if linked and index < len(descriptors) - 1 else flags
        link = (index + 1 if links is None else links[index]) & 0xFFFF
        fields = (link, following) if packed else (following, link)
        table += struct.pack("<QIHH", address, length, *fields)
    return table


def passed(event, new, old):
    """Whether a counter going from ``old`` to ``new`` went past ``event``."""
    return (new - event - 1) % 0x1_0000 < (new - old) % 0x1_0000


class _Ring:
    def __init__(self, memory, setup):
        self.memory = memory
        self.setup = setup
        self.free = setup.size
        self.added = 0  # since the last needs_kick
        memory.write(setup.desc, bytes(16 * setup.size))

    def word(self, address, size=2):
        return int.from_bytes(self.memory.read(address, size), "little")

    def set_word(self, address, value, size=2):
        self.memory.write(address, (value % (1 << 8 * size)).to_bytes(size, "little"))

    def set_descriptor(self, index, address, length, flags, link):
        """Overwrite a descriptor. ``link`` is its last 16-bit field but flags: next, or the buffer id."""
        fields = (link, flags) if self.setup.packed else (flags, link)
        self.memory.write(self.setup.desc + 16 * index, struct.pack("<QIHH", address, length, *fields))

    def descriptor(self, index):
        """(address, length, flags, next or buffer id) as they are in memory."""
        address, length, *fields = struct.unpack("<QIHH", self.memory.read(self.setup.desc + 16 * index, 16))
        link, flags = fields if self.setup.packed else reversed(fields)
        return address, length, flags, link

    def _take(self, count):
        if count > self.free or not count:
            raise IndexError(f"{count} descriptors, {self.free} of {self.setup.size} are free")
        self.free -= count


class SplitRing(_Ring):
    """Section 2.7. ``available`` and ``used`` are the indices as the driver counts them."""

    def __init__(self, memory, setup, start):
        super().__init__(memory, setup)
        size = setup.size
        memory.write(setup.driver, bytes(6 + 2 * size))
        memory.write(setup.device, bytes(6 + 8 * size))
        self.available = self.used = start
        self.set_index(start)
        self.set_word(setup.device + 2, start)
        self._unused = list(range(size))
        self._chains = {}
        self._event = setup.device + 4 + 8 * size
        if setup.event_idx:
            self.set_word(self._event, start)
            self.set_used_event(start)

    @staticmethod
    def device_state(start):
        return {"available": start, "used": start, "signalled": start}

    def add(self, descriptors, links):
        self._take(len(descriptors))
        # From the end and the start in turns: chains do not lie in order in a table that was used a while.
        slots = [self._unused.pop(-1 if n % 2 else 0) for n in range(len(descriptors))]
        links = [*slots[1:], 0] if links is None else links
        for slot, (address, length, flags), link in zip(slots, descriptors, links, strict=True):
            self.set_descriptor(slot, address, length, flags, link)
        self._chains[slots[0]] = slots
        self.set_slot(self.available, slots[0])
        self.available = (self.available + 1) % 0x1_0000
        self.set_index(self.available)
        self.added += 1
        return slots[0]

    def set_slot(self, index, head):
        """Overwrite the available ring's entry for a free-running index."""
        self.set_word(self.setup.driver + 4 + 2 * (index % self.setup.size), head)

    def set_index(self, index):
        """Overwrite the available index."""
        self.set_word(self.setup.driver + 2, index)

    def set_used_event(self, index):
        self.set_word(self.setup.driver + 4 + 2 * self.setup.size, index)

    def needs_kick(self):
        added, self.added = self.added, 0
        if self.setup.event_idx:
            return passed(self.word(self._event), self.available, self.available - added)
        return bool(added) and not self.word(self.setup.device) & 1

    def take_used(self):
        if self.word(self.setup.device + 2) == self.used:
            return None
        entry = self.memory.read(self.setup.device + 4 + 8 * (self.used % self.setup.size), 8)
        self.used = (self.used + 1) % 0x1_0000
        return struct.unpack("<II", entry)

    def release(self, head):
        slots = self._chains.pop(head)
        self._unused += slots
        self.free += len(slots)

    def disable_interrupts(self):
        if self.setup.event_idx:
            self.set_used_event(self.used - 1)  # passed already
        else:
            self.set_word(self.setup.driver, 1)

    def interrupt_after(self, count):
        if self.setup.event_idx:
            self.set_used_event(self.used + count - 1)
        else:
            self.set_word(self.setup.driver, 0)
        return (self.word(self.setup.device + 2) - self.used) % 0x1_0000 >= count


class PackedRing(_Ring):
    """Section 2.8. Positions come with wrap counters: (``next``, ``wrap``) and (``used``, ``used_wrap``)."""

    def __init__(self, memory, setup, start):
        super().__init__(memory, setup)
        memory.write(setup.driver, bytes(4))
        memory.write(setup.device, bytes(4))
        self.next = self.used = start
        self.wrap = self.used_wrap = 1
        for position in range(start):  # as left behind by a lap that was used up to there
            self.set_descriptor(position, 0, 0, AVAIL | USED, 0)
        self._ids = list(range(setup.size))
        self._slots = {}

    @staticmethod
    def device_state(start):
        return {
            "available": start, "available_wrap": 1, "used": start, "used_wrap": 1, "unsignalled": 0,
        }  # fmt: skip

    def add(self, descriptors, links):
        self._take(len(descriptors))
        count = len(descriptors)
        ident = self._ids.pop(len(self._ids) // 2)
        writes = []
        for n, (address, length, flags) in enumerate(descriptors):
            lap = AVAIL if self.wrap else USED
            link = ident if n == count - 1 else ~ident & 0xFFFF  # only the last descriptor's id counts
            writes.append((self.next, address, length, flags | lap, link))
            self.next, self.wrap = self._advance(self.next, self.wrap, 1)
        for write in reversed(writes):  # the head's flags publish all of it
            self.set_descriptor(*write)
        self._slots[ident] = count
        self.added += count
        return ident

    def needs_kick(self):
        added, self.added = self.added, 0
        where, flags = struct.unpack("<HH", self.memory.read(self.setup.device, 4))
        if not added or flags != AT_DESCRIPTOR:
            return bool(added) and flags != DISABLE
        event = where & 0x7FFF
        if where >> 15 != self.wrap:
            event -= self.setup.size
        return passed(event, self.next, self.next - added)

    def take_used(self):
        _, length, flags, ident = self.descriptor(self.used)
        if not self._is_used(flags, self.used_wrap):
            return None
        slots = self._slots.get(ident, 1)
        self.used, self.used_wrap = self._advance(self.used, self.used_wrap, slots)
        return ident, length

    def release(self, ident):
        self._ids.append(ident)
        self.free += self._slots.pop(ident)

    def disable_interrupts(self):
        self.set_event(0, 0, DISABLE)

    def interrupt_after(self, count):
        if self.setup.event_idx:
            self.set_event(*self._advance(self.used, self.used_wrap, count - 1), AT_DESCRIPTOR)
        else:
            self.set_event(0, 0, ENABLE)
        return self._slots_used() >= count

    def _slots_used(self):
        """Slots of the ring that the device gave back and we did not take yet."""
        position, wrap, slots = self.used, self.used_wrap, 0
        while slots < self.setup.size and self._is_used(self.descriptor(position)[2], wrap):
            passed_over = self._slots.get(self.descriptor(position)[3], 1)
            position, wrap = self._advance(position, wrap, passed_over)
            slots += passed_over
        return slots

    def set_event(self, position, wrap, flags):
        """Overwrite the driver's event suppression."""
        self.memory.write(self.setup.driver, struct.pack("<HH", position | wrap << 15, flags))

    def _advance(self, position, wrap, count):
        position += count
        return (position - self.setup.size, wrap ^ 1) if position >= self.setup.size else (position, wrap)

    @staticmethod
    def _is_used(flags, wrap):
        return bool(flags & AVAIL) == bool(flags & USED) == bool(wrap)
