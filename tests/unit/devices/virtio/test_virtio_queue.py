# SPDX-License-Identifier: Apache-2.0
"""What both ring layouts have in common, and what no layout lets a hostile driver do."""

import pytest
from fakes.driver import FakeDriver
from fakes.driver_rings import INDIRECT, NEXT, WRITE

from pyvmm.devices.virtio.chain import MAX_INDIRECT, gather, scatter
from pyvmm.devices.virtio.packed import PackedQueue
from pyvmm.devices.virtio.queue import QueueSetup, make_queue
from pyvmm.devices.virtio.split import SplitQueue
from pyvmm.errors import GuestAccessError, HostError, QueueError
from pyvmm.memory import DEVICE, READ_ONLY, GuestMemory
from pyvmm.ring import LIBATOMIC, NATIVE, PLAIN, Ring

BASE = 0x8000_0000
MIB = 1 << 20
SEAM = BASE + MIB  # where two banks of RAM meet
END = BASE + 2 * MIB  # of RAM; then a hole
ROM = BASE + 4 * MIB
PAGE = 4096


@pytest.fixture
def memory():
    with GuestMemory() as memory:  # closing it fails when a view was left behind
        memory.add(BASE, MIB)
        memory.add(SEAM, MIB)
        memory.add(ROM, PAGE, kind=READ_ONLY)
        memory.add(ROM + PAGE, PAGE, kind=DEVICE)
        yield memory


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def packed(request):
    return request.param


@pytest.fixture
def connect(memory, packed):
    """Makes both sides of a queue: (driver, queue)."""
    made = []

    def make(backend=PLAIN, **options):
        driver = FakeDriver(memory, packed=packed, **options)
        made.append(driver.make_queue(Ring(backend)))
        return driver, made[-1]

    yield make
    for queue in made:
        queue.close()


def echo(queue):
    """Take a chain, answer with the request reversed; the request."""
    chain = queue.pop()
    request = gather(chain.readable)
    queue.complete(chain, scatter(chain.writable, request[::-1]))
    return request


@pytest.mark.parametrize("backend", [NATIVE, LIBATOMIC, PLAIN])
def test_request_goes_out_and_the_answer_comes_back(connect, backend):
    try:
        driver, queue = connect(backend)
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


# Set-up


@pytest.mark.parametrize("size", [0, -1, 32769, 65536])
def test_absurd_size_is_refused(memory, packed, size):
    with pytest.raises(QueueError, match=f"{size} descriptors"):
        make_queue(memory, Ring(PLAIN), QueueSetup(size, BASE, BASE + MIB // 2, BASE + PAGE, packed=packed))


@pytest.mark.parametrize("area", ["desc", "driver", "device"])
@pytest.mark.parametrize(
    "address",
    [
        0,
        BASE - 16,
        SEAM - 16,
        END - 16,
        END,
        ROM,
        ROM + PAGE,
        (1 << 64) - 16,
        1 << 64,
        BASE + 1,
        BASE - (1 << 64),
    ],
)
def test_area_that_is_not_aligned_ram_of_one_bank_is_refused(memory, packed, area, address):
    good = {"desc": BASE, "driver": BASE + PAGE, "device": BASE + 2 * PAGE}
    # Event suppression of a packed ring is so small that it fits right before a border.
    address += 14 if packed and area != "desc" and address in {SEAM - 16, END - 16} else 0
    with pytest.raises(QueueError, match="area at"):
        make_queue(memory, Ring(PLAIN), QueueSetup(8, **good | {area: address}, packed=packed))


def test_areas_in_different_banks_and_at_the_end_of_memory_work(memory, packed):
    setup = QueueSetup(16, END - 256, BASE + PAGE, SEAM, packed=packed)
    queue = make_queue(memory, Ring(PLAIN), setup)
    assert isinstance(queue, PackedQueue if packed else SplitQueue)
    assert queue.pop() is None
    queue.close()


# Hostile chains


HOSTILE = {
    "outside memory": [(END, 1, 0)],
    "below memory": [(BASE - 1, 1, 0)],
    "into the hole": [(END - 1, 2, 0)],
    "across banks into the hole": [(SEAM - 1, MIB + 2, 0)],
    "wrapping": [((1 << 64) - 1, 2, 0)],
    "4 GiB": [(BASE, 0xFFFF_FFFF, 0)],
    "second is outside": [(BASE, 1, NEXT), (0, 1, WRITE)],
    "readable after writable": [(BASE, 1, WRITE | NEXT), (BASE, 1, 0)],
    "table outside memory": [(END, 16, INDIRECT)],
    "table across the end": [(END - 16, 32, INDIRECT)],
    "table wrapping": [((1 << 64) - 16, 32, INDIRECT)],
    "table of nothing": [(BASE, 0, INDIRECT)],
    "table of an odd length": [(BASE, 17, INDIRECT)],
    "table of half an entry": [(BASE, 8, INDIRECT)],
    "table of 4 GiB": [(BASE, 0xFFFF_FFF0, INDIRECT)],
    "table too long": [(BASE, 16 * (MAX_INDIRECT + 1), INDIRECT)],
    "table that goes on": [(BASE, 16, INDIRECT | NEXT), (BASE, 16, 0)],
}


@pytest.mark.parametrize("descriptors", HOSTILE.values(), ids=HOSTILE)
def test_chain_that_no_driver_may_make_is_refused(connect, descriptors):
    driver, queue = connect(size=4)
    driver.add_raw(descriptors)
    with pytest.raises(QueueError):
        queue.pop()


def test_broken_queue_is_told_from_a_bad_address_and_caught_as_one():
    assert issubclass(QueueError, GuestAccessError)


def test_indirect_table_that_was_not_negotiated_is_refused(connect):
    driver, queue = connect(indirect=False)
    driver.add_chain([b"x"], indirect=True)
    with pytest.raises(QueueError, match="not negotiated"):
        queue.pop()


@pytest.mark.parametrize("position", [0, 1])
def test_indirect_table_inside_a_table_is_refused(connect, position):
    driver, queue = connect()
    inner = driver.allocate(bytes(16))
    entries = [(driver.allocate(b"x"), 1, NEXT), (driver.allocate(b"x"), 1, 0)]
    entries[position] = (inner, 16, INDIRECT)
    driver.add_table(entries)
    with pytest.raises(QueueError, match="indirect"):
        queue.pop()


def test_readable_after_writable_inside_a_table_is_refused(connect):
    driver, queue = connect()
    driver.add_table([(BASE, 1, WRITE | NEXT), (BASE, 1, 0)])
    with pytest.raises(QueueError, match="readable descriptor"):
        queue.pop()


def test_write_flag_of_a_table_itself_means_nothing(connect):
    driver, queue = connect()
    table = driver.allocate(bytes(16))
    driver.memory.write(table, BASE.to_bytes(8, "little") + (1).to_bytes(4, "little"))
    driver.add_raw([(table, 16, INDIRECT | WRITE)])
    chain = queue.pop()
    assert [len(view) for view in chain.readable] == [1]
    queue.complete(chain, 0)


def test_table_may_be_longer_than_a_small_queue(connect):
    driver, queue = connect(size=2)
    token = driver.add_chain([b"%d" % n for n in range(10)], [1] * 10, indirect=True)
    assert echo(queue) == b"0123456789"
    assert driver.collect() == [(token, 10, b"9876543210")]


def test_chain_of_more_than_4_gib_is_refused(connect):
    driver, queue = connect()
    driver.add_table([(BASE, 0x7FFF_FFFF, NEXT), (BASE, 0x7FFF_FFFF, NEXT), (BASE, 3, 0)])
    with pytest.raises(QueueError, match="a chain of 4294967297 bytes"):
        queue.pop()


def test_same_memory_may_be_named_as_often_as_a_table_has_room(connect):
    driver, queue = connect()
    driver.add_table([(BASE, MIB, NEXT)] * 1023 + [(BASE, MIB, 0)])
    chain = queue.pop()
    assert len(chain.readable) == 1024
    queue.complete(chain, 0)


def test_descriptor_changed_after_it_was_taken_changes_nothing(connect, packed):
    driver, queue = connect(size=4)
    token = driver.add_chain([b"ab"], [2])
    chain = queue.pop()
    for index in range(4):
        driver.ring.set_descriptor(index, 0, 0xFFFF_FFFF, 0xFFFF & ~(1 << 7 | 1 << 15), 99)
    queue.complete(chain, scatter(chain.writable, b"ok"))
    assert driver.collect() == [(token, 2, b"ok")]
