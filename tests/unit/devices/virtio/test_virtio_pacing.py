# SPDX-License-Identifier: Apache-2.0
"""Interrupts for a console's output: late and once for many, for drivers that do not wait for them."""

import random
import struct

import pytest
from fakes.virtio import Rig, make_services

from pyvmm.devices.console.ports import Port
from pyvmm.devices.virtio.chain import total
from pyvmm.devices.virtio.console import Console
from pyvmm.devices.virtio.device import Services
from pyvmm.devices.virtio.pacing import BUSY, SOON
from pyvmm.gate import Gate

TX, CONTROL_OUT, TX1 = 1, 3, 5
PORT_READY = 3


class Screen:
    def __init__(self):
        self.data = b""

    def write(self, data):
        self.data += data

    def when_room(self, callback):
        raise AssertionError("it is never full")


class Guest:
    """The driver of an output queue. ``interrupts`` is how often it was interrupted for it."""

    def __init__(self, rig, queue=TX):
        self.rig = rig
        self.queue = queue
        self.driver = rig.drivers[queue]

    @property
    def interrupts(self):
        return self.rig.interrupts.queues.get(self.queue, 0)

    def send(self, data=b"sixteen bytes..\n"):
        """Without looking whether it comes back."""
        self.driver.add_chain([data])
        with self.rig.core.lock:
            self.rig.core.notify(self.queue)

    def collect(self):
        """Take back what was used, and ask for an interrupt for the next one, as Linux does."""
        count = len(self.driver.collect())
        self.driver.enable_interrupts()
        return count

    def put(self):
        """As Linux's hvc does: it spins until the buffer is back."""
        self.send()
        assert self.collect() == 1

    def wait(self):
        """Sleep until the interrupt; returns how long that was."""
        before, start = self.interrupts, self.rig.loop.now
        while self.interrupts == before:
            assert self.rig.loop.now - start <= BUSY + 2 * SOON, "the interrupt was lost"
            self.rig.loop.advance(SOON / 4)
        return self.rig.loop.now - start


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def packed(request):
    return request.param


@pytest.fixture
def rig(packed):
    with Rig(Console(Screen()), packed=packed, event_idx=True) as rig:
        rig.start()
        yield rig


@pytest.fixture
def guest(rig):
    return Guest(rig)


def pending(rig):
    return [timer for timer in rig.loop.timers if timer.callback is not None]


def test_driver_that_spins_is_never_interrupted(rig, guest):
    for _ in range(1000):
        guest.put()
        rig.loop.advance(SOON / 3)
    rig.loop.advance(1)
    assert guest.interrupts <= 1000 // guest.driver.setup.size  # those that might have filled the queue
    assert len(rig.device._screen.data) == 16_000


def test_buffer_is_back_before_its_interrupt(rig, guest):
    guest.send()
    assert len(guest.driver.collect()) == 1
    assert guest.interrupts == 0


def test_driver_that_waits_is_interrupted_once_for_all_of_it(rig, guest):
    for _ in range(5):
        guest.send()
    rig.loop.advance(2 * SOON)
    assert guest.interrupts == 1
    assert guest.collect() == 5
    rig.loop.advance(1)
    assert guest.interrupts == 1


def test_driver_that_waited_is_interrupted_at_once_afterwards(rig, guest):
    guest.send()
    guest.wait()
    guest.collect()
    for count in range(2, 6):
        guest.send()
        assert guest.interrupts == count
        guest.collect()


def test_what_a_waiting_driver_can_send_is_not_bound_by_the_delay(rig, guest):
    """One buffer at a time: at a delay for each, a thousand would take two seconds."""
    for _ in range(1000):
        before = guest.interrupts
        guest.send()
        if guest.interrupts == before:
            guest.wait()
        assert guest.collect() == 1
    assert rig.loop.now < 10 * BUSY


def test_driver_that_began_to_wait_amid_its_output_is_not_kept_waiting_long(rig, guest):
    for _ in range(20):
        guest.put()
        rig.loop.advance(SOON)
    guest.send()
    assert guest.wait() <= BUSY + 2 * SOON


def test_driver_that_has_not_seen_its_buffer_yet_is_not_taken_for_one_that_waits(rig, guest):
    """Looks tend to come just then."""
    for _ in range(500):
        guest.send()
        rig.loop.advance(SOON / 2)
        guest.collect()
    assert guest.interrupts <= 500 // guest.driver.setup.size


@pytest.mark.parametrize("seed", range(10))
def test_driver_that_now_spins_and_now_waits_is_always_interrupted(rig, guest, seed):
    """``wait`` fails when it is not, or too late."""
    chance = random.Random(seed)
    for _ in range(100):
        for _ in range(chance.randint(0, guest.driver.free_slots)):
            guest.send()
        if chance.random() < 0.5:
            rig.loop.advance(chance.random() * 3 * SOON)
        if chance.random() < 0.5:
            guest.collect()
        if chance.random() < 0.5:
            guest.collect()
            before = guest.interrupts
            guest.send()
            if guest.interrupts == before:
                guest.wait()
            guest.collect()


def test_driver_without_a_free_buffer_is_interrupted_at_once(rig, guest):
    while guest.driver.free_slots:
        guest.send()
    assert guest.interrupts == 1


def test_interrupt_comes_when_the_driver_asks_for_one_after_several(rig, guest):
    guest.driver.interrupt_after(3)
    for sent in range(1, 5):
        guest.send()
        rig.loop.advance(1)
        assert guest.interrupts == (sent >= 3)


def test_looks_share_a_timer_and_end_with_the_output(rig, guest):
    made = []
    call_later = rig.loop.call_later
    rig.loop.call_later = lambda seconds, callback: made.append(seconds) or call_later(seconds, callback)
    for _ in range(100):
        guest.put()
        rig.loop.advance(SOON / 2)
    assert made[:5] == [SOON, SOON, BUSY, SOON, BUSY]
    assert len(made) <= 12
    rig.loop.advance(1)
    assert not rig.loop.timers
    guest.put()
    assert made[-1] == SOON


def test_without_the_event_index_each_is_interrupted_for_at_once(packed):
    with Rig(Console(Screen()), packed=packed) as rig:
        rig.start()
        guest = Guest(rig)
        for count in range(1, 9):
            guest.send()
            assert guest.interrupts == count


def test_reset_forgets_what_was_put_off(rig, guest):
    guest.send()
    assert pending(rig)
    rig.reset()
    assert not pending(rig)
    guest.driver.reset()
    rig.start()
    rig.loop.advance(1)
    assert guest.interrupts == 0
    guest.driver.enable_interrupts()
    guest.send()
    guest.wait()


def test_queue_that_was_reset_interrupts_for_nothing_old(rig, guest):
    guest.send()
    core, setup = rig.core, guest.driver.setup
    core.queue_select = TX
    with core.lock:
        core.disable_queue()()
    rig.loop.advance(1)
    assert guest.interrupts == 0
    guest.driver.reset()
    for name in ("size", "desc", "driver", "device"):
        core.set_queue(name, getattr(setup, name))
    with core.lock:
        core.enable_queue()
    guest.driver.enable_interrupts()
    guest.send()
    guest.wait()
    assert guest.collect() == 1


def test_broken_ring_does_not_swallow_the_interrupt_for_what_came_before(rig, guest):
    guest.send()
    guest.driver.add_raw([(0x10, 4, 0)])
    with rig.core.lock:
        rig.core.notify(TX)
    assert rig.broken
    assert (guest.interrupts, rig.interrupts.config) == (1, 1)
    assert not pending(rig)


def test_chain_before_a_broken_one_in_the_same_pass_is_interrupted_for(rig, guest):
    guest.driver.add_chain([b"good"])
    guest.driver.add_raw([(0x10, 4, 0)])
    with rig.core.lock:
        rig.core.notify(TX)
    assert rig.broken
    assert guest.interrupts == 1


def test_interrupt_put_off_waits_out_a_pause(packed):
    services = make_services()
    gate = Gate(services.loop)
    gated = Services(gate, services.workers)
    gate.run = services.loop.run  # what a rig asks of its loop
    with Rig(Console(Screen()), packed=packed, event_idx=True, services=gated) as rig:
        rig.start()
        guest = Guest(rig)
        guest.send()
        gate.shut()
        services.loop.advance(1)
        assert guest.interrupts == 0
        gate.open()
        services.loop.run()
        services.loop.advance(SOON)
        assert guest.interrupts == 1


def test_saved_state_brings_the_interrupt_that_was_put_off(rig, guest):
    guest.send()
    with rig.core.lock:
        state = rig.core.state()
        rig.core.load_state(state)  # which ends the session that put it off
    assert not pending(rig)
    guest.wait()
    assert guest.collect() == 1


def test_port_that_waits_for_its_buffers_is_interrupted_at_once(packed):
    class Taker(Port):
        def send(self, views):
            return total(views)

    with Rig(Console(None, (Taker("agent"),)), packed=packed, event_idx=True) as rig:
        rig.start()
        rig.drivers[CONTROL_OUT].add_chain([struct.pack("<IHH", 1, PORT_READY, 1)])
        rig.kick(CONTROL_OUT)
        guest = Guest(rig, TX1)
        for count in range(1, 100):
            guest.driver.add_chain([b"to the port"])
            rig.kick(TX1)
            assert guest.interrupts == count
            assert guest.collect() == 1
        assert not rig.loop.timers
