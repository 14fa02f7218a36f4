# SPDX-License-Identifier: Apache-2.0
import pytest
from fakes.driver import FakeDriver
from fakes.driver_rings import INDIRECT, NEXT, WRITE

from pyvmm.devices.virtio.chain import gather
from pyvmm.devices.virtio.queue import QueueSetup, make_queue
from pyvmm.errors import QueueError
from pyvmm.memory import GuestMemory
from pyvmm.ring import PLAIN, Ring

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
        driver = FakeDriver(memory, **options)
        made.append(driver.make_queue(Ring(backend)))
        return driver, made[-1]

    yield make
    for queue in made:
        queue.close()


@pytest.mark.parametrize("size", [3, 12, 32767])
def test_size_that_is_no_power_of_two_is_refused(memory, size):
    with pytest.raises(QueueError, match=f"{size} descriptors"):
        make_queue(memory, Ring(PLAIN), QueueSetup(size, BASE, BASE + 0x8_0000, BASE + 0x9_0000))


@pytest.mark.parametrize("event_idx", [False, True])
def test_largest_queue_goes_over_the_wrap_of_its_index(memory, event_idx):
    driver = FakeDriver(memory, size=32768, span=1 << 20, event_idx=event_idx, start=65530)
    queue = driver.make_queue(Ring(PLAIN))
    for n in range(20):
        token = driver.add_chain([b"%d" % n])
        assert driver.needs_kick()
        chain = queue.pop()
        assert gather(chain.readable) == b"%d" % n
        queue.complete(chain, 0)
        assert not queue.resume_notify()
        assert queue.should_interrupt()
        assert driver.collect() == [(token, 0, b"")]
        driver.enable_interrupts()
    queue.close()


def test_used_index_and_element_are_where_the_specification_says(connect, memory):
    driver, queue = connect(size=4, start=65535)
    driver.add_chain([], [10])
    chain = queue.pop()
    queue.complete(chain, 7)
    slot = driver.setup.device + 4 + 8 * (65535 % 4)
    assert memory.read(slot, 8) == chain.head.to_bytes(4, "little") + (7).to_bytes(4, "little")
    assert memory.read(driver.setup.device + 2, 2) == b"\0\0"


@pytest.mark.parametrize("jump", [5, 6, 1000, 0x8000, 0xFFFF, -1])
def test_index_more_than_a_ring_ahead_is_refused(connect, jump):
    driver, queue = connect(size=4, start=100)
    driver.ring.set_index(100 + jump)
    with pytest.raises(QueueError, match="jumped"):
        queue.pop()


def test_more_chains_than_a_ring_holds_are_refused_while_none_came_back(connect):
    driver, queue = connect(size=4)
    for _ in range(4):
        driver.add_chain([b"x"])
    chains = [queue.pop() for _ in range(4)]
    driver.ring.set_index(5)
    with pytest.raises(QueueError, match="jumped"):
        queue.pop()
    for chain in chains:
        queue.complete(chain, 0)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_index_that_steps_back_into_what_is_held_is_refused(connect, index):
    driver, queue = connect(size=4)
    for _ in range(3):
        driver.add_chain([b"x"])
    chains = [queue.pop() for _ in range(3)]
    driver.ring.set_index(index)
    with pytest.raises(QueueError, match="jumped"):
        queue.pop()
    for chain in chains:
        queue.complete(chain, 0)


@pytest.mark.parametrize("head", [4, 5, 0xFFFF])
def test_head_outside_the_table_is_refused(connect, head):
    driver, queue = connect(size=4)
    driver.add_chain([b"x"])
    driver.ring.set_slot(0, head)
    with pytest.raises(QueueError, match=f"descriptor {head} of 4"):
        queue.pop()


@pytest.mark.parametrize("links", [[0], [1, 0], [1, 2, 3, 1], [1, 2, 3, 3]])
def test_loop_is_refused(connect, links):
    driver, queue = connect(size=4)
    # The table is laid out by hand: the fake driver's own choice of slots is not to matter.
    driver.add_raw([(BASE, 1, NEXT)] * len(links))
    for slot, link in enumerate(links):
        driver.ring.set_descriptor(slot, BASE, 1, NEXT, link)
    driver.ring.set_slot(0, 0)
    with pytest.raises(QueueError, match="loops"):
        queue.pop()


@pytest.mark.parametrize("link", [2, 1000, 0xFFFF])
def test_link_out_of_an_indirect_table_is_refused(connect, link):
    driver, queue = connect()
    driver.add_table([(BASE, 1, NEXT), (BASE, 1, 0)], links=[link, 0])
    with pytest.raises(QueueError, match=f"descriptor {link} of 2"):
        queue.pop()


def test_loop_in_an_indirect_table_is_refused(connect):
    driver, queue = connect()
    driver.add_table([(BASE, 1, NEXT), (BASE, 1, NEXT)], links=[1, 0])
    with pytest.raises(QueueError, match="loops"):
        queue.pop()


def test_chain_may_end_in_an_indirect_table(connect):
    driver, queue = connect()
    table = driver.allocate(driver.allocate(b"tail").to_bytes(8, "little") + (4).to_bytes(8, "little"))
    driver.add_raw([(driver.allocate(b"head "), 5, NEXT), (table, 16, INDIRECT)])
    chain = queue.pop()
    assert gather(chain.readable) == b"head tail"
    queue.complete(chain, 0)


def test_order_is_checked_across_the_border_to_an_indirect_table(connect):
    driver, queue = connect()
    table = driver.allocate(BASE.to_bytes(8, "little") + (4).to_bytes(8, "little"))
    driver.add_raw([(BASE, 1, WRITE | NEXT), (table, 16, INDIRECT)])
    with pytest.raises(QueueError, match="readable descriptor"):
        queue.pop()
