# SPDX-License-Identifier: Apache-2.0
"""What neither ring layout lets a hostile driver do."""

import pytest
from fakes.driver_rings import INDIRECT, NEXT, WRITE
from fakes.queues import BASE, END, MIB, PAGE, ROM, SEAM, echo

from pyvmm.devices.virtio.chain import MAX_INDIRECT, scatter
from pyvmm.devices.virtio.packed import PackedQueue
from pyvmm.devices.virtio.queue import QueueSetup, make_queue
from pyvmm.devices.virtio.split import SplitQueue
from pyvmm.errors import GuestAccessError, QueueError
from pyvmm.ring import PLAIN, Ring

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
