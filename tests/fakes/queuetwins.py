# SPDX-License-Identifier: Apache-2.0
"""A driver and a device with a queue in C or in Python, and all there is to see after each of their steps.

    assert played(make, steps, in_c=True) == played(make, steps, in_c=False)

The driver is well-behaved, but for the steps that write anything anywhere into its rings and tables; and the
device goes on after errors, as no real one does.
"""

from __future__ import annotations

from typing import NamedTuple

from fakes.driver import FakeDriver
from fakes.driver_rings import AVAIL, USED

from pyvmm.errors import QueueError
from pyvmm.memory import READ_ONLY, GuestMemory
from pyvmm.ring import NATIVE, PLAIN, Ring

BASE, SIZE = 0x8000_0000, 0x4000  # the main bank: the rings, tables and buffers
SEAM = BASE + SIZE  # a smaller bank behind it
ROM = 0x9000_0000
PAGE = 0x1000
#: What memory holds at first: no two of its 32 bytes in a row are the same.
_PATTERN = b"".join((index * 0x9E37_79B1 & 0xFFFF_FFFF).to_bytes(4, "little") for index in range(SIZE // 4))


class Queue(NamedTuple):
    """What the driver sets up."""

    packed: bool
    size: int
    event_idx: bool
    indirect: bool
    start: int


class Step(NamedTuple):
    """One thing that the driver or the device does; ``Play`` has a method of that name."""

    name: str
    arguments: tuple = ()


class Play:
    """Both sides, before the first step."""

    def __init__(self, queue, in_c):
        self.memory = GuestMemory()
        self.memory.add(BASE, SIZE)
        self.memory.add(SEAM, PAGE)
        self.memory.add(ROM, PAGE, kind=READ_ONLY)
        self.memory.write(BASE, _PATTERN)
        self.memory.write(SEAM, _PATTERN[::-1][:PAGE])
        options = {"packed": queue.packed, "event_idx": queue.event_idx, "indirect": queue.indirect}
        start = queue.start % (queue.size if queue.packed else 0x1_0000)
        self.driver = FakeDriver(self.memory, size=queue.size, span=SIZE, start=start, **options)
        self.queue = self.driver.make_queue(Ring(NATIVE if in_c else PLAIN))
        self.position = getattr(self.queue, "_twin", self.queue).position
        self.held = []

    def close(self):
        self.held.clear()
        self.queue.close()
        self.memory.close()

    # The driver

    def add(self, readable, writable, indirect):
        try:
            self.driver.add_chain([b"?" * size for size in readable], list(writable), indirect=indirect)
        except (IndexError, MemoryError):  # no descriptors, no room: it waits
            pass

    def descriptor(self, index, address, length, flags, link):
        self.driver.ring.set_descriptor(index % self.driver.setup.size, address, length, flags, link)

    def poke(self, area, offset, value):
        setup = self.driver.setup
        start = (setup.desc, setup.driver, setup.device)[area]
        self.driver.ring.set_word(start + offset % (6 + 16 * setup.size), value)

    def offer(self, value):
        """So many further buffers are available (packed: one, with these flags), whatever is in the ring."""
        setup, position = self.driver.setup, self.position
        if setup.packed:
            turn = AVAIL if position.wrap else USED
            self.driver.ring.set_word(setup.desc + 16 * position.next + 14, turn | value & 7)
        else:
            self.driver.ring.set_word(setup.driver + 2, position.next + value)

    # The device

    def pop(self):
        chain = self.queue.pop()
        if chain is None:
            return None
        self.held.append(chain)
        views = [(view.readonly, bytes(view)) for view in (*chain.readable, *chain.writable)]
        return chain.head, chain.slots, len(chain.readable), views

    def _let_go(self, index, written):
        chain = self.held.pop(index % len(self.held))
        return chain, written

    def complete(self, index, written):
        if self.held:
            chain, written = self._let_go(index, written)
            done = self.queue.complete(chain, written)
            return done, chain.readable, chain.writable
        return None

    def complete_all(self, index, written):
        """Half of them, at least one."""
        chains = [self._let_go(index, written + nth) for nth in range((len(self.held) + 1) // 2)]
        done = self.queue.complete_all(chains)
        return done, [(chain.readable, chain.writable) for chain, _ in chains]

    def should_interrupt(self):
        return self.queue.should_interrupt()

    def pause_notify(self):
        return self.queue.pause_notify()

    def resume_notify(self):
        return self.queue.resume_notify()

    def seen(self):
        """All of memory, and where the device stands."""
        return self.memory.read(BASE, SIZE + PAGE), bytes(self.position)


def played(queue, steps, *, in_c):
    """For each step what it returned or raised, and what there was to see afterwards if that changed."""
    play = Play(queue, in_c)
    seen = []
    try:
        before = play.seen()
        for step in steps:
            try:
                result = getattr(play, step.name)(*step.arguments)
            except QueueError as error:
                result = f"QueueError: {error}"
            now = play.seen()
            seen.append((step.name, result, None if now == before else now))
            before = now
    finally:
        play.close()
    return seen
