# SPDX-License-Identifier: Apache-2.0
import struct

import pytest
from fakes.driver import FakeDriver
from fakes.driver_rings import AT_DESCRIPTOR, AVAIL, ENABLE, INDIRECT, NEXT, USED, WRITE

from pyvmm.devices.virtio.chain import gather
from pyvmm.errors import QueueError
from pyvmm.memory import GuestMemory
from pyvmm.ring import Ring

BASE = 0x8000_0000


@pytest.fixture
def memory():
    with GuestMemory() as memory:
        memory.add(BASE, 1 << 20)
        yield memory


@pytest.fixture
def connect(memory, backend):
    """Makes both sides of a queue: (driver, queue)."""
    made = []

    def make(**options):
        driver = FakeDriver(memory, packed=True, **options)
        made.append(driver.make_queue(Ring(backend)))
        return driver, made[-1]

    yield make
    for queue in made:
        queue.close()


@pytest.mark.parametrize("size", [1, 3, 7, 100, 32768])
def test_any_size_goes_over_its_wrap(connect, size):
    driver, queue = connect(size=size, span=1 << 20, start=size - 1)
    for n in range(5):
        token = driver.add_chain([b"%d" % n])
        chain = queue.pop()
        assert gather(chain.readable) == b"%d" % n
        queue.complete(chain, 0)
        assert queue.pop() is None
        assert not queue.resume_notify()
        assert driver.collect() == [(token, 0, b"")]


def test_chain_around_the_end_of_the_ring_is_whole(connect):
    driver, queue = connect(size=5, start=3)
    token = driver.add_chain([b"a", b"b"], [3, 3])
    chain = queue.pop()
    assert gather(chain.readable) == b"ab"
    assert [len(view) for view in chain.writable] == [3, 3]
    assert chain.slots == 4
    queue.complete(chain, 0)
    assert driver.collect() == [(token, 0, b"")]
    assert queue.state() | {"unsignalled": 0} == {
        "available": 2, "available_wrap": 0, "used": 2, "used_wrap": 0, "unsignalled": 0,
    }  # fmt: skip


@pytest.mark.parametrize(("written", "write"), [(0, 0), (5, WRITE)])
def test_used_descriptor_has_length_id_and_flags_of_this_lap(connect, written, write):
    driver, queue = connect(size=2, start=1)
    for turn in (AVAIL | USED, 0):  # wrap counter 1, then 0 past the end
        driver.add_chain([], [9])
        position = queue.state()["used"]
        chain = queue.pop()
        queue.complete(chain, written)
        _, length, flags, ident = driver.ring.descriptor(position)
        assert (length, flags, ident) == (written, turn | write, chain.head)
        driver.collect()


def test_buffer_id_is_that_of_the_last_descriptor(connect):
    driver, queue = connect(size=4)
    driver.add_raw([(BASE, 1, NEXT), (BASE, 1, 0)])
    driver.ring.set_descriptor(0, BASE, 1, NEXT | AVAIL, 0xAAAA)
    driver.ring.set_descriptor(1, BASE, 1, AVAIL, 0xBBBB)
    chain = queue.pop()
    assert chain.head == 0xBBBB
    queue.complete(chain, 0)


@pytest.mark.parametrize("flags", [0, USED, AVAIL | USED])
def test_descriptor_whose_flags_say_otherwise_is_not_taken(connect, flags):
    driver, queue = connect(size=2)
    driver.ring.set_descriptor(0, BASE, 1, flags, 0)
    assert queue.pop() is None
    assert not queue.resume_notify()


@pytest.mark.parametrize("flags", [0, AVAIL, AVAIL | USED])
def test_in_the_second_lap_flags_mean_the_opposite(connect, flags):
    driver, queue = connect(size=1)
    driver.add_chain([b"x"])
    queue.complete(queue.pop(), 0)
    driver.ring.set_descriptor(0, BASE, 1, flags, 0)
    assert queue.pop() is None
    driver.ring.set_descriptor(0, BASE, 1, USED, 0)
    assert queue.resume_notify()
    queue.complete(queue.pop(), 0)


def test_chain_that_never_ends_is_refused(connect):
    driver, queue = connect(size=4)
    for index in range(4):
        driver.ring.set_descriptor(index, BASE, 1, NEXT | AVAIL, 0)
    with pytest.raises(QueueError, match="more than 4 descriptors"):
        queue.pop()


def test_chain_into_descriptors_that_the_device_holds_is_refused(connect):
    driver, queue = connect(size=4)
    for _ in range(3):
        driver.add_chain([b"x"])
    chains = [queue.pop() for _ in range(3)]
    driver.ring.set_descriptor(3, BASE, 1, NEXT | AVAIL, 0)  # goes on in 0, which is in flight
    with pytest.raises(QueueError, match="the device holds"):
        queue.pop()
    for chain in chains:
        queue.complete(chain, 0)


def test_ring_made_available_again_before_anything_came_back_is_refused(connect):
    driver, queue = connect(size=2)
    driver.add_chain([b"x"])
    driver.add_chain([b"x"])
    chains = [queue.pop(), queue.pop()]
    driver.ring.set_descriptor(0, BASE, 1, USED, 0)  # available in the next lap
    with pytest.raises(QueueError, match="the device holds"):
        queue.pop()
    for chain in chains:
        queue.complete(chain, 0)


def test_indirect_table_inside_a_chain_is_refused(connect):
    driver, queue = connect(size=4)
    driver.add_raw([(BASE, 1, NEXT), (BASE, 16, INDIRECT)])
    with pytest.raises(QueueError, match="inside a chain"):
        queue.pop()


def test_next_flag_in_an_indirect_table_means_nothing(connect):
    driver, queue = connect()
    a, b = driver.allocate(b"a"), driver.allocate(b"b")
    driver.add_table([(a, 1, 0), (b, 1, NEXT)])
    chain = queue.pop()
    assert gather(chain.readable) == b"ab"
    queue.complete(chain, 0)


@pytest.mark.parametrize("mode", [AT_DESCRIPTOR, 3, 0xFFFF])
def test_unknown_event_mode_interrupts(connect, mode):
    driver, queue = connect(event_idx=False)
    driver.ring.set_event(9, 0, mode)
    driver.add_chain([b"x"])
    queue.complete(queue.pop(), 0)
    assert queue.should_interrupt()


@pytest.mark.parametrize("wrap", [0, 1])
def test_event_position_outside_the_ring_does_no_lasting_harm(connect, wrap):
    driver, queue = connect(size=4, event_idx=True)
    for _ in range(9):
        driver.ring.set_event(0x7FFF, wrap, AT_DESCRIPTOR)
        driver.add_chain([b"x"])
        queue.complete(queue.pop(), 0)
        queue.should_interrupt()
        driver.collect()
    driver.enable_interrupts()
    driver.add_chain([b"x"])
    queue.complete(queue.pop(), 0)
    assert queue.should_interrupt()


def test_enable_mode_interrupts_every_time_with_event_idx_too(connect):
    driver, queue = connect(size=4, event_idx=True)
    driver.ring.set_event(0, 0, ENABLE)
    for _ in range(9):
        driver.add_chain([b"x"])
        queue.complete(queue.pop(), 0)
        assert queue.should_interrupt()
        driver.collect()


@pytest.mark.parametrize("event_idx", [False, True])
def test_device_event_names_where_it_stands(connect, memory, event_idx):
    driver, queue = connect(size=4, start=2, event_idx=event_idx)
    queue.pause_notify()
    assert memory.read(driver.setup.device, 4) == struct.pack("<HH", 0, 1)
    queue.resume_notify()
    expected = struct.pack("<HH", 2 | 1 << 15, 2) if event_idx else bytes(4)
    assert memory.read(driver.setup.device, 4) == expected
