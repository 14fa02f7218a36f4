# SPDX-License-Identifier: Apache-2.0
"""Feature negotiation, status, activation and reset, whatever the transport."""

import os
import threading

import pytest
from fakes.echo import Echo
from fakes.virtio import Rig

from pyvmm.devices.virtio import bits
from pyvmm.errors import QueueError

READY = bits.ACKNOWLEDGE | bits.DRIVER | bits.FEATURES_OK | bits.DRIVER_OK


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def rig(request):
    with Rig(Echo(), packed=request.param) as rig:
        yield rig


def test_chain_is_answered_and_interrupts_once(rig):
    rig.start()
    token = rig.drivers[0].add_chain([b"hello"], [16])
    rig.kick()
    assert rig.drivers[0].collect() == [(token, 5, b"hello")]
    assert rig.interrupts.queues == {0: 1}


def test_chains_of_one_kick_share_an_interrupt(rig):
    rig.start()
    for number in range(5):
        rig.drivers[0].add_chain([bytes([number])], [4])
    rig.kick()
    assert len(rig.drivers[0].collect()) == 5
    assert rig.interrupts.queues == {0: 1}


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_driver_that_notifies_only_when_asked_to_gets_every_answer(packed, event_idx):
    with Rig(Echo(), packed=packed, event_idx=event_idx) as rig:
        rig.start()
        driver = rig.drivers[0]
        for turn in range(100):
            count = 1 + turn % 5
            tokens = [driver.add_chain([b"%d" % turn], [4], indirect=bool(turn % 2)) for _ in range(count)]
            assert driver.needs_kick()
            rig.kick()
            assert [done.token for done in driver.collect()] == tokens


def test_features_that_were_not_offered_are_refused(rig):
    core = rig.core
    core.write_status(bits.ACKNOWLEDGE | bits.DRIVER)
    core.driver_features = 1 << bits.F_VERSION_1 | 1 << 7
    core.write_status(bits.ACKNOWLEDGE | bits.DRIVER | bits.FEATURES_OK)
    assert not core.status & bits.FEATURES_OK


def test_driver_without_version_1_is_refused(rig):
    core = rig.core
    core.driver_features = 1 << 3
    core.write_status(bits.FEATURES_OK)
    assert not core.status & bits.FEATURES_OK


def test_features_do_not_change_once_accepted(rig):
    rig.start()
    before = rig.core.driver_features
    rig.core.driver_feature_select = 0
    rig.core.write_driver_features(0)
    assert rig.core.driver_features == before
    assert rig.core.odd == 1


def test_driver_ok_without_features_ok_does_not_start_the_device(rig):
    rig.core.write_status(bits.ACKNOWLEDGE | bits.DRIVER | bits.DRIVER_OK)
    assert rig.device.session is None
    assert not rig.core.status & bits.DRIVER_OK


def test_access_platform_is_not_offered(rig):
    assert not rig.core.offered >> 33 & 1


def test_feature_words_beyond_the_second_read_zero_and_take_nothing(rig):
    core = rig.core
    core.device_feature_select = core.driver_feature_select = 0xFFFF_FFFF
    core.write_driver_features(0xFFFF_FFFF)
    assert core.read_device_features() == core.read_driver_features() == core.driver_features == 0


def test_reset_brings_everything_back_to_power_on(rig):
    rig.start()
    rig.device.LOW = 1
    rig.reset()
    assert rig.core.status == rig.core.driver_features == 0
    assert rig.device.LOW == 0x1234_5678
    assert rig.device.stopped == 1
    assert not any(queue.enabled for queue in rig.core.registers)


def test_device_works_again_after_a_reset(rig):
    rig.start()
    rig.reset()
    for driver in rig.drivers:
        driver.reset()
    rig.start()
    token = rig.drivers[0].add_chain([b"again"], [5])
    rig.kick()
    assert rig.drivers[0].collect() == [(token, 5, b"again")]


def test_answers_of_an_earlier_session_are_dropped(rig):
    rig.start()
    rig.drivers[1].add_chain([b"late"], [8])
    rig.kick(1)
    device = rig.device
    device.answer()
    rig.reset()
    assert rig.drivers[1].collect() == []
    assert rig.interrupts.queues == {}


def test_reset_waits_for_host_io_in_flight(rig):
    rig.start()
    rig.workers.held = True
    order = []
    rig.device.session.submit(lambda: order.append("host I/O"), lambda _: order.append("completion"))
    with rig.core.lock:
        after = rig.core.write_status(0)
    waiter = threading.Thread(target=lambda: (after(), order.append("reset")))
    waiter.start()
    rig.workers.held = False
    rig.workers.release()
    waiter.join(10)
    rig.loop.run()
    assert order == ["host I/O", "reset"]


def test_queue_reset_drops_its_chains_and_leaves_the_other_queue_alone(rig):
    rig.start()
    rig.drivers[1].add_chain([b"lost"], [8])
    rig.kick(1)
    rig.core.queue_select = 1
    with rig.core.lock:
        after = rig.core.disable_queue()
    after()
    rig.device.answer()
    rig.loop.run()
    assert rig.drivers[1].collect() == []
    token = rig.drivers[0].add_chain([b"x"], [1])
    rig.kick(0)
    assert rig.drivers[0].collect() == [(token, 1, b"x")]


def test_queue_comes_back_after_its_reset(rig):
    rig.start()
    core, driver = rig.core, rig.drivers[0]
    core.queue_select = 0
    with core.lock:
        core.disable_queue()()
    driver.reset()
    for name in ("size", "desc", "driver", "device"):
        core.set_queue(name, getattr(driver.setup, name))
    with core.lock:
        core.enable_queue()
    token = driver.add_chain([b"back"], [4])
    rig.kick()
    assert driver.collect() == [(token, 4, b"back")]


@pytest.mark.parametrize("name", ["desc", "driver", "device"])
def test_queue_outside_of_memory_needs_a_reset_and_says_so(rig, name):
    setup = rig.drivers[0].setup
    setattr(setup, name, 0x1000)
    rig.start()
    assert rig.core.status & bits.NEEDS_RESET
    assert "0x1000" in rig.broken
    assert rig.interrupts.config == 1
    rig.kick()  # nothing happens, and nothing raises


def test_broken_ring_stops_the_device_until_reset(rig):
    rig.start()
    rig.drivers[0].add_raw([(0x10, 4, 0)])
    rig.kick()
    assert rig.core.status == READY | bits.NEEDS_RESET
    rig.reset()
    assert rig.core.status == 0
    assert rig.broken == ""


def test_other_devices_callbacks_do_not_run_after_the_ring_broke(rig):
    rig.start()
    rig.drivers[1].add_chain([b"held"], [8])
    rig.kick(1)
    rig.drivers[0].add_raw([(0x10, 4, 0)])
    rig.kick()
    rig.device.answer()
    rig.loop.run()
    assert rig.drivers[1].collect() == []


def test_sizes_and_addresses_do_not_change_while_a_queue_is_enabled(rig):
    rig.start()
    rig.core.queue_select = 0
    before = rig.core.selected.desc
    rig.core.set_queue_address("desc", 0, 0)
    rig.core.set_queue("size", 1)
    assert (rig.core.selected.desc, rig.core.selected.size) == (before, 16)
    assert rig.core.odd == 2


@pytest.mark.parametrize("size", [0, 17, 0xFFFF])
def test_absurd_queue_size_is_not_enabled(rig, size):
    rig.core.queue_select = 0
    rig.core.set_queue("size", size)
    rig.core.enable_queue()
    assert not rig.core.selected.enabled


def test_queue_that_does_not_exist_reads_zero_and_takes_nothing(rig):
    rig.core.queue_select = 2
    rig.core.set_queue("desc", 1)
    rig.core.enable_queue()
    assert rig.core.selected.largest == rig.core.selected.desc == 0
    assert rig.core.disable_queue() is None


def test_notification_that_caused_an_exit_works_the_queue_too(rig):
    rig.start()
    token = rig.drivers[0].add_chain([b"exit"], [4])
    rig.core.notify(0)
    rig.core.notify(7)
    rig.loop.run()
    assert rig.drivers[0].collect() == [(token, 4, b"exit")]


def test_queue_that_is_never_empty_waits_for_one_turn_however_often_the_driver_notifies(rig):
    """Each turn would ask for the next, and each notification would add one more for ever."""

    class Endless(Echo):
        turns = 0

        def on_kick(self, queue):
            self.turns += 1
            self.session.kick(queue)

    with Rig(Endless()) as other:
        other.start()
        other.device.at_once = (0,)
        for _ in range(3):
            with other.core.lock:
                other.core.notify(0)
        for _ in range(3):
            other.loop.run_once()
        assert (other.device.turns, len(other.loop.calls)) == (6, 1)


def test_configuration_change_counts_and_interrupts_a_running_driver(rig):
    rig.device.config_changed()
    assert (rig.core.generation, rig.interrupts.config) == (1, 0)
    rig.start()
    with rig.core.lock:
        rig.device.config_changed()
    assert (rig.core.generation, rig.interrupts.config) == (2, 1)


def test_offloaded_queue_interrupts_through_an_eventfd_of_ours(rig):
    class Offloading(Echo):
        def activate(self, session):
            super().activate(session)
            self.kick_fd, self.call_fd = session.queues[0].offload()

    with Rig(Offloading()) as other:
        other.start()
        assert other.device.kick_fd == other.doorbells[0].fd
        other.kick()  # the kernel's half would take it: we leave it alone
        os.eventfd_write(other.device.call_fd, 1)
        other.loop.run()
        assert other.interrupts.queues == {0: 1}
        call_fd = other.device.call_fd
        other.reset()
        with pytest.raises(OSError):
            os.fstat(call_fd)


def test_nothing_is_watched_for_a_driver_that_broke_the_rules(rig):
    rig.start()
    session, fd = rig.device.session, os.eventfd(1, os.EFD_NONBLOCK)  # ready for ever
    try:
        with rig.core.lock:
            session.fail("a lie")
            session.watch(fd, lambda _events: None)
            session.queues[0].offload()
        os.eventfd_write(session.call_fd(0), 1)
        rig.loop.run()
        assert rig.loop.watches == []
    finally:
        os.close(fd)


def test_device_that_was_never_activated_is_neither_stopped_nor_told_of_its_queues(rig):
    heard = []
    rig.device.on_queue_stop = heard.append
    rig.drivers[0].setup.desc = 0x10  # nobody's memory
    rig.start()
    assert "not in one bank" in rig.broken
    assert rig.device.session is None
    with rig.core.lock:
        rig.core.queue_select = 1
        rig.core.disable_queue()()
    rig.reset()
    assert (rig.device.stopped, heard) == (0, [])


def test_device_is_closed_once_with_the_machine(rig):
    rig.core.close()
    assert rig.device.closed == 1


def test_state_is_plain_data_of_registers_rings_and_device(rig):
    rig.start()
    with rig.core.lock:
        state = rig.core.state()
    assert state["status"] == READY
    assert state["queues"][0]["desc"] == rig.drivers[0].setup.desc
    assert state["device"]["LOW"] == 0x1234_5678
    assert len(state["rings"]) == 2


def test_ring_that_breaks_while_another_queue_is_reset_needs_a_reset(rig):
    class Nosy(Echo):
        def on_queue_stop(self, queue):
            raise QueueError("looked at the other queue")

    with Rig(Nosy()) as other:
        other.start()
        other.core.queue_select = 0
        with other.core.lock:
            after = other.core.disable_queue()
        after()
        assert other.core.status & bits.NEEDS_RESET
        assert other.broken == "looked at the other queue"


def test_host_that_refuses_what_activation_needs_fails_the_device_alone(rig):
    class Poor(Echo):
        def activate(self, session):
            raise OSError(24, "Too many open files")

    with Rig(Poor()) as other:
        other.start()
        assert other.core.status & bits.NEEDS_RESET
        assert "Too many open files" in other.broken


def test_results_that_wait_for_the_loop_hold_no_memory_after_the_session(rig):
    rig.start()
    rig.drivers[1].add_chain([b"x"], [8])
    rig.kick(1)
    rig.device.session.submit(rig.device.held.pop, lambda _: None)
    with rig.core.lock:
        after = rig.core.write_status(0)
    after()
    rig.drivers = []
    rig.memory.close()  # refuses while a view of it is alive: the loop still has calls to make
    assert rig.loop.calls
