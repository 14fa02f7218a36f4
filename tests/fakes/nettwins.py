# SPDX-License-Identifier: Apache-2.0
"""A card on a fake tap whose frames are moved in C or in Python, and all there is to see after each step.

    assert played(setup, steps, in_c=True) == played(setup, steps, in_c=False)

What a driver may look at is compared: its rings, its buffers as far as they were used, interrupts, whether to
kick; and frames and counters. What is in buffers that it did not get back is its device's business.
"""

from __future__ import annotations

import os
import select
import socket
from contextlib import ExitStack, closing, suppress
from typing import NamedTuple

from fakes.tap import FakeTap
from fakes.virtio import RAM, Rig

from pyvmm.devices.net import bits as netbits
from pyvmm.devices.virtio.net import Net
from pyvmm.memory import GuestMemory
from pyvmm.ring import NATIVE, PLAIN

RX, TX = 0, 1
RAM_SIZE = 4 << 20
#: A smaller bank of RAM: C leaves buffers in it to Python.
ELSEWHERE = 0xC000_0000
#: Twice that is room for one large frame that is not taken; larger ones the host refuses.
_WIRE = 20_000
_MAC = bytes.fromhex("525400123456")


class Setup(NamedTuple):
    """What the driver negotiates, and how long its queues are."""

    packed: bool
    event_idx: bool
    mergeable: bool
    size: int


class Step(NamedTuple):
    """One thing that happens; ``Play`` has a method of that name."""

    name: str
    arguments: tuple = ()


def some_frame(size, number):
    """A frame with its header, unlike others."""
    repeated = bytes((number * 31 + at * 7) & 0xFF for at in range(256))
    return (repeated * (size // 256 + 1))[:size]


class Play:
    """The card, started, before the first step."""

    def __init__(self, setup, in_c, stack):
        self._tap = stack.enter_context(closing(FakeTap()))
        with socket.socket(fileno=os.dup(self._tap.end.ports[0].fd)) as near:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _WIRE)
        memory = GuestMemory()
        memory.add(RAM, RAM_SIZE)
        memory.add(ELSEWHERE, 1 << 20)
        self.rig = stack.enter_context(
            Rig(
                Net(self._tap.end, _MAC),
                packed=setup.packed,
                event_idx=setup.event_idx,
                size=setup.size,
                memory=memory,
                backend=NATIVE if in_c else PLAIN,
            )
        )
        offered = self.rig.device.offered()
        self.rig.start(offered if setup.mergeable else offered & ~(1 << netbits.MRG_RXBUF))
        self._count = 0

    def _placed(self, size, elsewhere):
        self._count += 1
        return (ELSEWHERE + 0x1000 * (self._count % 200), size) if elsewhere else size

    def _add(self, queue, readable, writable, indirect):
        try:
            self.rig.drivers[queue].add_chain(readable, writable, indirect=indirect)
        except (IndexError, MemoryError):  # no descriptors, no room: it waits
            pass

    # The driver

    def offer(self, sizes, indirect, elsewhere, count):
        """So many buffers to receive into, in pieces of these sizes, the last one perhaps elsewhere."""
        for _ in range(count):
            self._add(RX, (), [*sizes[:-1], self._placed(sizes[-1], elsewhere)], indirect)
        self.kick(RX)

    def queue(self, sizes, writable, indirect):
        """A buffer to send from: a frame in pieces of these sizes, and what no frame has."""
        self._count += 1
        whole, pieces = some_frame(sum(sizes), self._count), []
        for size in sizes:
            pieces.append(whole[:size])
            whole = whole[size:]
        self._add(TX, pieces, writable, indirect)

    def queue_elsewhere(self, size):
        """A frame in one piece, from the smaller bank."""
        self._add(TX, [self._placed(size, True)], (), False)

    def raw(self, queue, descriptors):
        """Descriptors that no driver makes."""
        try:
            self.rig.drivers[queue].add_raw(descriptors)
        except IndexError:
            pass

    def poke(self, queue, area, offset, value):
        """Two bytes of a ring, whatever they were."""
        driver = self.rig.drivers[queue]
        start = (driver.setup.desc, driver.setup.driver, driver.setup.device)[area]
        driver.ring.set_word(start + offset, value)

    def kick(self, queue):
        self.rig.kick(queue)

    def wants_kick(self, queue):
        return self.rig.drivers[queue].needs_kick()

    def enable_interrupts(self, queue):
        return self.rig.drivers[queue].enable_interrupts()

    def disable_interrupts(self, queue):
        self.rig.drivers[queue].disable_interrupts()

    def collect(self, queue):
        return self.rig.drivers[queue].collect()

    # The host

    def arrive(self, sizes):
        """Frames come, or what is none."""
        for size in sizes:
            self._count += 1
            try:
                self._tap.far[0].send(some_frame(size, self._count))
            except BlockingIOError:  # the wire is full
                break
        self.rig.loop.run()

    def take(self):
        """Every frame that the card has sent."""
        frames = []
        while select.select([self._tap.far[0]], [], [], 0)[0]:
            frames.append(self._tap.far[0].recv(1 << 17))
        self.rig.loop.run()
        return frames

    def link(self, up):
        self.rig.device.set_link(up)

    def fresh(self):
        """The driver resets the card and begins anew; nothing is on the wire."""
        rig, port = self.rig, self._tap.end.ports[0]
        rig.device.set_link(True)
        rig.reset()
        self.take()
        while select.select([port.fd], [], [], 0)[0]:
            os.read(port.fd, 1 << 17)
        for driver in rig.drivers:
            setup = driver.setup
            rig.memory.write(setup.desc, bytes(setup.device + 6 + 8 * setup.size - setup.desc))
            driver.reset()
        rig.start()

    def seen(self):
        """What there is to see at any time."""
        rig, counters = self.rig, self.rig.device.counters
        rings = []
        for driver in rig.drivers[:2]:
            end = driver.setup.device + 6 + 8 * driver.setup.size
            rings.append(rig.memory.read(driver.setup.desc, end - driver.setup.desc))
        return (
            rings,
            (counters.rx_dropped, counters.tx_dropped, counters.malformed, counters.lost),
            (dict(rig.interrupts.queues), rig.broken),
            [watch.events for watch in rig.loop.watches if watch.fd == self._tap.end.ports[0].fd],
        )


def played(setup, steps, *, in_c):
    """For each step what it returned, and what there was to see afterwards."""
    with ExitStack() as stack:
        play = Play(setup, in_c, stack)
        return [(step, getattr(play, step.name)(*step.arguments), play.seen()) for step in steps]


#: What a driver raises that confused itself, in what is its part alone.
_CONFUSED = {"collect": (AssertionError, KeyError)}


def endured(setup, steps):
    """Whether the C moves frames again after these, and a reset; drivers may do anything here."""
    with ExitStack() as stack:
        play = Play(setup, True, stack)
        for step in steps:
            with suppress(*_CONFUSED.get(step.name, ())):
                getattr(play, step.name)(*step.arguments)
        play.fresh()
        play.offer((2000,), False, False, 1)
        play.queue((12, 60), (), False)
        play.kick(TX)
        sent = len(play.take())
        play.arrive((72,))
        return sent == 1 and [done.written for done in play.collect(RX)] == [72]
