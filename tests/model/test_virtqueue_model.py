# SPDX-License-Identifier: Apache-2.0
"""Both ring layouts against a naive model: a list. And against a driver that writes random bytes.

The driver and the device take turns in random order, each at its own pace. Every chain arrives once, in
order, with its bytes; every completion arrives once, in the device's order; and whoever sleeps after having
asked to be woken is woken.
"""

from collections import deque

import pytest
from fakes.driver import FakeDriver
from fakes.native import BACKENDS
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pyvmm.devices.virtio.chain import gather, scatter, total
from pyvmm.devices.virtio.queue import make_queue
from pyvmm.errors import QueueError
from pyvmm.memory import GuestMemory
from pyvmm.ring import PLAIN, Ring

BASE, SIZE = 0x8000_0000, 0x2_0000


class Conversation(RuleBasedStateMachine):
    """One driver, one device, one queue."""

    PACKED, BACKEND = False, PLAIN

    def __init__(self):
        super().__init__()
        self.memory = GuestMemory()
        self.memory.add(BASE, SIZE)
        self.offered = deque()  # (token, bytes, room) that the device has not taken
        self.held = []  # (token, chain, bytes) that it has
        self.returned = deque()  # (token, written, data) that the driver has not collected
        self.asleep = False  # the device: it was told that there is nothing, and waits for a kick
        self.waiting = 0  # the driver: for this many units used, and an interrupt; 0 when it is not
        self.units = {}  # token -> what the event index counts it as

    @initialize(data=st.data(), event_idx=st.booleans())
    def begin(self, data, event_idx):
        if self.PACKED:
            size = data.draw(st.integers(1, 9))
            start = data.draw(st.integers(0, size - 1))
        else:
            size = data.draw(st.sampled_from([1, 2, 4, 8]))
            start = data.draw(st.sampled_from([0, 65528, 65533, 65535]))
        self.driver = FakeDriver(
            self.memory, packed=self.PACKED, size=size, span=SIZE, event_idx=event_idx, start=start
        )
        self.queue = self.driver.make_queue(Ring(self.BACKEND))
        self.event_idx = event_idx

    def teardown(self):
        if hasattr(self, "queue"):
            self.take(99)
            while self.held:
                self.give_back(0, b"end")
            self.collect()
            assert not self.offered
            assert not self.returned
            assert not self.driver.in_flight
            assert self.queue.pop() is None
            self.queue.close()
        self.memory.close()

    # The driver

    @rule(
        parts=st.lists(st.binary(max_size=5), max_size=3),
        rooms=st.lists(st.integers(0, 6), max_size=3),
        indirect=st.booleans(),
    )
    def add(self, parts, rooms, indirect):
        slots = 1 if indirect else len(parts) + len(rooms)
        if (not parts and not rooms) or slots > self.driver.free_slots:
            return
        token = self.driver.add_chain(parts, rooms, indirect=indirect)
        self.offered.append((token, b"".join(parts), sum(rooms)))
        self.units[token] = slots if self.PACKED else 1
        self.unkicked = True

    unkicked = False

    @precondition(lambda self: self.unkicked)
    @rule()
    def kick(self):
        self.unkicked = False
        if self.driver.needs_kick():
            self.asleep = False
        assert not (self.asleep and self.offered), "a notification was lost"

    @rule()
    def collect(self):
        completions = self.driver.collect()
        assert completions == list(self.returned)
        self.returned.clear()
        self.waiting = 0

    @rule()
    def do_not_disturb(self):
        self.driver.disable_interrupts()
        self.waiting = 0

    @rule(count=st.integers(1, 4))
    def wait(self, count):
        if not self.event_idx:
            count = 1
        if count > self.driver.setup.size or (not self.PACKED and count > len(self.driver.in_flight)):
            return
        used = sum(self.units[token] for token, _, _ in self.returned)
        there = self.driver.interrupt_after(count)
        assert there == (used >= count)
        self.waiting = 0 if there else count

    # The device

    @rule(count=st.integers(1, 4))
    def take(self, count):
        for _ in range(count):
            chain = self.queue.pop()
            if chain is None:
                assert not self.offered
                return
            token, request, room = self.offered.popleft()
            assert gather(chain.readable) == request
            assert total(chain.writable) == room
            self.held.append((token, chain, request))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 8), answer=st.binary(max_size=12))
    def give_back(self, which, answer):
        token, chain, request = self.held.pop(which % len(self.held))
        assert gather(chain.readable) == request
        written = scatter(chain.writable, answer)
        self.queue.complete(chain, written)
        self.returned.append((token, written, answer[:written]))

    @rule()
    def interrupt(self):
        if self.queue.should_interrupt():
            self.waiting = 0
        used = sum(self.units[token] for token, _, _ in self.returned)
        assert not (self.waiting and used >= self.waiting), "an interrupt was lost"

    @rule()
    def pause(self):
        self.queue.pause_notify()
        self.asleep = False

    @rule()
    def sleep(self):
        more = self.queue.resume_notify()
        assert more == bool(self.offered)
        self.asleep = not more

    @rule(answer=st.binary(max_size=12))
    def work(self, answer):
        """A whole pass, as devices do it."""
        self.pause()
        self.take(99)
        while self.held:
            self.give_back(-1, answer)
        self.interrupt()
        self.sleep()

    @precondition(lambda self: not self.held)
    @rule()
    def replace(self):
        """Save the device's side, and go on with another one."""
        state = self.queue.state()
        self.queue.close()
        self.queue = make_queue(self.memory, Ring(self.BACKEND), self.driver.setup)
        self.queue.load_state(state)

    @invariant()
    def nothing_is_lost(self):
        if hasattr(self, "driver"):
            assert len(self.driver.in_flight) == len(self.offered) + len(self.held) + len(self.returned)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_conversation_goes_as_in_the_model(packed, backend):
    kind = type("AConversation", (Conversation,), {"PACKED": packed, "BACKEND": backend})
    run_state_machine_as_test(
        kind, settings=settings(max_examples=100, stateful_step_count=60, deadline=None)
    )


# A driver that follows no rule

ADDRESSES = st.one_of(
    st.integers(BASE - 2, BASE + SIZE + 2),
    st.sampled_from(
        [0, BASE, BASE + 0x1000, BASE + SIZE - 1, BASE + SIZE - 16, (1 << 64) - 1, (1 << 64) - 16]
    ),
    st.integers(0, (1 << 64) - 1),
)
LENGTHS = st.one_of(
    st.integers(0, 64), st.sampled_from([16 * 9, 0x1000, SIZE, 0xFFFF_FFFF]), st.integers(0, 0xFFFF_FFFF)
)
FLAGS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 4, 5]).flatmap(
        lambda low: st.sampled_from([0, 1 << 7, 1 << 15]).map(low.__or__)
    ),
    st.integers(0, 0xFFFF),
)
LINKS = st.one_of(st.integers(0, 9), st.integers(0, 0xFFFF))
ATTACKS = st.lists(
    st.one_of(
        st.tuples(st.just("descriptor"), st.integers(0, 7), ADDRESSES, LENGTHS, FLAGS, LINKS),
        st.tuples(st.just("driver"), st.integers(0, 21), st.integers(0, 0xFFFF)),
        st.tuples(st.just("device"), st.integers(0, 69), st.integers(0, 0xFFFF)),
        st.tuples(st.just("bytes"), st.integers(0x1000, SIZE - 64), st.binary(min_size=1, max_size=64)),
        st.tuples(st.sampled_from(["pop", "complete", "suppress"])),
    ),
    max_size=40,
)


class Attack:
    """A queue under attack, and what the device holds of it."""

    def __init__(self, memory, packed, event_idx, backend):
        self.memory = memory
        self.driver = FakeDriver(memory, packed=packed, size=8, span=SIZE, event_idx=event_idx)
        self.queue = self.driver.make_queue(Ring(backend))
        self.held = []

    def descriptor(self, *fields):
        self.driver.ring.set_descriptor(*fields)

    def driver_area(self, offset, value):
        self.driver.ring.set_word(self.driver.setup.driver + offset, value)

    def device_area(self, offset, value):
        self.driver.ring.set_word(self.driver.setup.device + offset, value)

    def bytes(self, offset, data):
        self.memory.write(BASE + offset, data)

    def pop(self):
        chain = self.queue.pop()
        if chain is not None:
            self.held.append(chain)
        assert sum(chain.slots for chain in self.held) <= 8

    def complete(self):
        if self.held:
            self.queue.complete(self.held.pop(), 0)

    def suppress(self):
        self.queue.pause_notify()
        self.queue.resume_notify()
        self.queue.should_interrupt()

    def rings(self):
        """Where the device may write: the device area, and the descriptors when packed."""
        setup = self.driver.setup
        yield setup.device - BASE, setup.device - BASE + (4 if setup.packed else 6 + 8 * 8)
        if setup.packed:
            yield 0, 16 * 8


def outside(memory, ranges):
    image = bytearray(memory.read(BASE, SIZE))
    for start, stop in ranges:
        image[start:stop] = bytes(stop - start)
    return image


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@settings(max_examples=400, deadline=None)
@given(attacks=ATTACKS, event_idx=st.booleans())
def test_random_ring_contents_break_the_queue_at_worst(backend, packed, attacks, event_idx):
    names = {"driver": "driver_area", "device": "device_area"}
    with GuestMemory() as memory:
        memory.add(BASE, SIZE)
        attack = Attack(memory, packed, event_idx, backend)
        try:
            for name, *arguments in attacks:
                theirs = name not in {"pop", "complete", "suppress"}
                before = outside(memory, attack.rings())
                getattr(attack, names.get(name, name))(*arguments)
                assert theirs or outside(memory, attack.rings()) == before
        except QueueError:
            pass
        for chain in attack.held:
            chain.close()
        attack.queue.close()
