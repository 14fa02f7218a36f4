# SPDX-License-Identifier: Apache-2.0
"""What both ring layouts have in common."""

import pytest
from fakes.driver_rings import NEXT, WRITE
from fakes.queues import END, ROM, SEAM, echo

from pyvmm.devices.virtio.chain import gather, scatter
from pyvmm.devices.virtio.queue import make_queue
from pyvmm.errors import HostError, QueueError
from pyvmm.ring import LIBATOMIC, NATIVE, PLAIN, Ring


@pytest.mark.parametrize("backend", [NATIVE, LIBATOMIC, PLAIN])
def test_request_goes_out_and_the_answer_comes_back(connect):
    try:
        driver, queue = connect()
    except HostError as error:
        pytest.skip(str(error))
    token = driver.add_chain([b"hel", b"lo"], [2, 10])
    assert echo(queue) == b"hello"
    assert driver.collect() == [(token, 5, b"olleh")]


def test_queue_without_chains_has_none(connect):
    _, queue = connect()
    assert queue.pop() is None


def test_views_have_the_driver_s_sizes_and_only_the_writable_can_be_written(connect):
    driver, queue = connect()
    driver.add_chain([b"ab", b"c"], [7, 1])
    chain = queue.pop()
    assert [len(view) for view in chain.readable] == [2, 1]
    assert [len(view) for view in chain.writable] == [7, 1]
    assert all(view.readonly for view in chain.readable)
    assert not any(view.readonly for view in chain.writable)
    queue.complete(chain, 0)
    assert not chain.readable
    assert not chain.writable


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4, 64])
def test_many_laps_deliver_every_chain_in_order(connect, size, indirect):
    driver, queue = connect(size=size)
    parts = 1 if indirect else min(size, 2)
    for lap in range(5 * size):
        tokens = []
        while driver.free_slots >= parts:
            tokens.append(driver.add_chain([b"%d" % lap], [9] * (parts - 1), indirect=indirect))
        for _ in tokens:
            assert echo(queue) == b"%d" % lap
        assert queue.pop() is None
        assert [done.token for done in driver.collect()] == tokens


def test_chains_completed_out_of_order_come_back_right(connect):
    driver, queue = connect(size=8)
    for _ in range(10):
        first = driver.add_chain([b"1"], [4])
        second = driver.add_chain([b"2", b"22"], [4])
        third = driver.add_chain([b"3"])
        one, two, three = queue.pop(), queue.pop(), queue.pop()
        queue.complete(two, scatter(two.writable, b"two"))
        queue.complete(three, 0)
        assert driver.collect() == [(second, 3, b"two"), (third, 0, b"")]
        queue.complete(one, scatter(one.writable, b"one"))
        assert driver.collect() == [(first, 3, b"one")]


def test_buffer_across_adjacent_banks_becomes_two_views(connect):
    driver, queue = connect()
    driver.add_chain([(SEAM - 3, 5)], [(SEAM - 1, 2)])
    chain = queue.pop()
    assert [len(view) for view in chain.readable] == [3, 2]
    assert [len(view) for view in chain.writable] == [1, 1]
    queue.complete(chain, 0)


def test_buffer_up_to_the_last_byte_of_memory_is_taken(connect):
    driver, queue = connect()
    driver.add_chain([(END - 8, 8)])
    chain = queue.pop()
    assert len(chain.readable[0]) == 8
    queue.complete(chain, 0)


def test_buffers_of_no_bytes_are_skipped_wherever_they_point(connect):
    driver, queue = connect()
    driver.add_raw(
        [(0, 0, NEXT), (driver.allocate(b"x"), 1, NEXT), (1 << 63, 0, NEXT | WRITE), (3, 0, WRITE)]
    )
    chain = queue.pop()
    assert gather(chain.readable) == b"x"
    assert not chain.writable
    queue.complete(chain, 0)


def test_device_memory_can_be_read_only_from_read_only_banks(connect):
    driver, queue = connect()
    driver.add_chain([(ROM, 4)])
    queue.complete(queue.pop(), 0)
    driver.add_chain([], [(ROM, 4)])
    with pytest.raises(QueueError):
        queue.pop()


def test_closed_queue_refuses_instead_of_touching_memory(connect):
    driver, queue = connect()
    driver.add_chain([b"x"])
    queue.complete(queue.pop(), 0)
    queue.close()
    for method in (queue.pop, queue.resume_notify, queue.should_interrupt):
        with pytest.raises(ValueError, match="closed"):
            method()


def test_state_goes_on_where_the_queue_was_left(connect):
    driver, queue = connect(size=4)
    for _ in range(6):
        driver.add_chain([b"x"])
        echo(queue)
        driver.collect()
    state = queue.state()
    assert all(type(value) is int for value in state.values())
    other = make_queue(driver.memory, Ring(PLAIN), driver.setup)
    other.load_state(state)
    token = driver.add_chain([b"next"])
    assert echo(other) == b"next"
    assert driver.collect() == [(token, 0, b"")]
    assert other.should_interrupt()  # for all of it: the first queue was never asked
    other.close()


# Notifications


@pytest.fixture(params=[False, True], ids=["flags", "event_idx"])
def quiet(request, connect):
    """Both sides, for either way to suppress notifications."""
    return connect(size=8, event_idx=request.param)


def test_kick_is_wanted_until_paused_and_again_when_resumed(quiet):
    driver, queue = quiet
    driver.add_chain([b"1"])
    assert driver.needs_kick()
    queue.pause_notify()
    echo(queue)
    driver.add_chain([b"2"])
    assert not driver.needs_kick()
    echo(queue)
    assert not queue.resume_notify()
    driver.add_chain([b"3"])
    assert driver.needs_kick()


def test_chain_added_before_resuming_is_reported(quiet):
    driver, queue = quiet
    queue.pause_notify()
    driver.add_chain([b"unheard"])
    assert queue.resume_notify()
    echo(queue)
    assert not queue.resume_notify()


def test_buffer_that_is_known_of_is_not_asked_for_again(quiet):
    driver, queue = quiet
    driver.add_chain([b"1"])
    driver.add_chain([b"2"])
    echo(queue)
    asked = driver.memory.read(driver.setup.device, 4)
    event = driver.memory.read(driver.setup.device + 4 + 8 * 8, 2)
    assert queue.resume_notify()
    assert driver.memory.read(driver.setup.device, 4) == asked
    assert driver.memory.read(driver.setup.device + 4 + 8 * 8, 2) == event
    assert echo(queue) == b"2"
    assert not queue.resume_notify()
    driver.needs_kick()
    driver.add_chain([b"3"])
    assert driver.needs_kick()


def test_driver_stays_quiet_when_resuming_finds_a_buffer(connect):
    driver, queue = connect(size=8, event_idx=False)
    queue.pause_notify()
    driver.add_chain([b"1"])
    assert queue.resume_notify()
    driver.add_chain([b"2"])
    assert not driver.needs_kick()
    assert [echo(queue), echo(queue)] == [b"1", b"2"]
    assert not queue.resume_notify()
    driver.add_chain([b"3"])
    assert driver.needs_kick()


def test_nothing_is_in_flight_when_a_full_ring_was_taken(quiet):
    driver, queue = quiet
    while driver.free_slots:
        driver.add_chain([b"x"])
    chains = [queue.pop() for _ in range(8)]
    assert queue.pop() is None
    assert not queue.resume_notify()
    for chain in chains:
        queue.complete(chain, 0)
    assert not queue.resume_notify()
    assert len(driver.collect()) == 8


# Interrupts


def test_interrupt_is_wanted_once_for_what_was_completed(quiet):
    driver, queue = quiet
    assert not queue.should_interrupt()
    driver.add_chain([b"1"])
    echo(queue)
    assert queue.should_interrupt()
    assert not queue.should_interrupt()


def test_chains_in_flight_together_interrupt_each(quiet):
    driver, queue = quiet
    for _ in range(9):
        driver.add_chain([b"1"])
        driver.add_chain([b"2"])
        for chain in (queue.pop(), queue.pop()):
            driver.enable_interrupts()
            queue.complete(chain, 0)
            assert queue.should_interrupt()
            driver.collect()


def test_interrupts_are_suppressed_until_enabled(quiet):
    driver, queue = quiet
    driver.disable_interrupts()
    for _ in range(20):
        driver.add_chain([b"1"])
        echo(queue)
        assert not queue.should_interrupt()
        driver.collect()
        driver.disable_interrupts()
    assert not driver.enable_interrupts()
    driver.add_chain([b"2"])
    echo(queue)
    assert queue.should_interrupt()


def test_enabling_interrupts_tells_of_what_was_completed_silently(quiet):
    driver, queue = quiet
    driver.disable_interrupts()
    driver.add_chain([b"1"])
    echo(queue)
    assert not queue.should_interrupt()
    assert driver.enable_interrupts()


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_interrupt_comes_with_the_completion_the_driver_asked_for(connect, count):
    driver, queue = connect(size=8, event_idx=True)
    for _ in range(9):
        driver.interrupt_after(count)
        for n in range(1, 9):
            driver.add_chain([b"x"])
            echo(queue)
            assert queue.should_interrupt() == (n == count)
        driver.collect()


def test_interrupt_is_wanted_when_one_pass_goes_past_the_event(connect):
    driver, queue = connect(size=8, event_idx=True)
    for _ in range(9):
        driver.interrupt_after(3)
        for _ in range(5):
            driver.add_chain([b"x"])
            echo(queue)
        assert queue.should_interrupt()
        driver.collect()
