# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading

import pytest

from pyvmm.errors import BusError
from pyvmm.mmio.bus import Bus
from pyvmm.mmio.regs import Reg, RegisterDevice

JOIN_SECONDS = 10


class Recorder:
    """A device that writes its accesses down and answers every read with ``value``."""

    def __init__(self, value: int = 0) -> None:
        self.lock = threading.Lock()
        self.value = value
        self.accesses: list[tuple] = []
        self.after = None

    def read(self, offset, size):
        assert self.lock.locked()
        self.accesses.append(("r", offset, size))
        return self.value

    def write(self, offset, size, value):
        assert self.lock.locked()
        self.accesses.append(("w", offset, size, value))
        return self.after


class Gate(Recorder):
    """A device whose reads wait inside, with the lock held, until ``leave`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = threading.Event()
        self.leave = threading.Event()

    def read(self, offset, size):
        self.inside.set()
        assert self.leave.wait(JOIN_SECONDS)
        return super().read(offset, size)


def start(target) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def finish(thread: threading.Thread) -> None:
    thread.join(JOIN_SECONDS)
    assert not thread.is_alive()


def test_access_reaches_the_device_with_its_offset():
    bus, device = Bus(), Recorder(0x55)
    bus.map(0x1000_0000, 0x100, device, name="uart")
    bus.write(0x1000_0004, 2, 0xABCD)
    assert bus.read(0x1000_00FF, 1) == 0x55
    assert device.accesses == [("w", 4, 2, 0xABCD), ("r", 0xFF, 1)]


def test_access_finds_the_right_one_of_many_devices():
    bus = Bus()
    devices = [Recorder(i) for i in range(16)]
    for i in reversed(range(16)):
        bus.map(0x1000 * i, 0x800, devices[i], name=f"d{i}")
    assert [bus.read(0x1000 * i + 0x7FC, 4) for i in range(16)] == list(range(16))


@pytest.mark.parametrize("address", [0x0, 0xFFF, 0x1100, 2**64 - 8])
def test_access_to_nowhere_reads_zero_and_is_counted(address):
    bus = Bus()
    bus.map(0x1000, 0x100, Recorder(7), name="d")
    assert bus.read(address, 1) == 0
    bus.write(address, 1, 1)
    assert bus.unclaimed.total == 2
    assert bus.unclaimed.straddling == 0
    assert bus.unclaimed.pages == {address & ~0xFFF: 2}


def test_access_on_an_empty_bus_reads_zero():
    bus = Bus()
    assert bus.read(0, 8) == 0
    assert bus.find(0) is None


def test_unclaimed_pages_are_bounded_while_the_total_goes_on():
    bus = Bus()
    for page in range(1000):
        bus.read(page << 12, 4)
    bus.read(0, 4)
    assert bus.unclaimed.total == 1001
    assert len(bus.unclaimed.pages) == 64
    assert bus.unclaimed.pages[0] == 2


@pytest.mark.parametrize("address", [0x10FE, 0x0FFE])
def test_access_across_a_mapping_edge_is_refused_and_counted(address):
    bus, device = Bus(), Recorder(7)
    bus.map(0x1000, 0x100, device, name="d")
    assert bus.read(address, 4) == 0
    bus.write(address, 4, 1)
    assert device.accesses == []
    assert (bus.unclaimed.total, bus.unclaimed.straddling) == (2, 2)


def test_access_across_two_adjacent_mappings_reaches_neither():
    bus, low, high = Bus(), Recorder(1), Recorder(2)
    bus.map(0x1000, 0x100, low, name="low")
    bus.map(0x1100, 0x100, high, name="high")
    assert bus.read(0x10FC, 8) == 0
    assert low.accesses == high.accesses == []


def test_mapping_at_the_end_of_the_address_space_answers_up_to_its_last_byte():
    bus, device = Bus(), Recorder(9)
    bus.map(2**64 - 8, 8, device, name="top")
    assert bus.read(2**64 - 8, 8) == 9
    assert bus.read(2**64 - 1, 1) == 9
    assert bus.read(2**64 - 4, 8) == 0
    assert bus.unclaimed.straddling == 1


@pytest.mark.parametrize(("base", "size"), [(0x0F00, 0x101), (0x1000, 0x100), (0x10FF, 1), (0, 0x10000)])
def test_map_over_another_mapping_names_both(base, size):
    bus = Bus()
    bus.map(0x1000, 0x100, Recorder(), name="uart")
    with pytest.raises(BusError) as error:
        bus.map(base, size, Recorder(), name="rtc")
    assert str(error.value) == f"rtc (0x{base:x}-0x{base + size - 1:x}) overlaps uart (0x1000-0x10ff)."
    assert len(bus.describe()) == 1


@pytest.mark.parametrize(("base", "size"), [(0x1000, 0), (2**64 - 1, 2)])
def test_map_of_an_impossible_range_is_refused(base, size):
    with pytest.raises(BusError):
        Bus().map(base, size, Recorder(), name="d")


def test_find_and_describe_know_the_mappings():
    bus = Bus()
    rtc = bus.map(0x2000, 0x10, Recorder(), name="rtc")
    uart = bus.map(0x1000, 0x10, Recorder(), name="uart")
    assert bus.find(0x100F) is uart
    assert bus.find(0x1010) is None
    assert bus.find(0x0FFF) is None
    assert bus.find(0x2000) is rtc
    assert [(str(where), name) for where, name in bus.describe()] == [
        ("0x1000-0x100f", "uart"),
        ("0x2000-0x200f", "rtc"),
    ]


def test_unmap_leaves_the_place_empty_and_free():
    bus = Bus()
    mapping = bus.map(0x1000, 0x100, Recorder(1), name="old")
    mapping.unmap()
    mapping.unmap()
    assert bus.read(0x1000, 4) == 0
    bus.map(0x1080, 0x100, Recorder(2), name="new")
    assert bus.read(0x1080, 4) == 2


def test_unmap_of_an_old_mapping_does_not_remove_its_successor():
    bus = Bus()
    old = bus.map(0x1000, 0x100, Recorder(1), name="old")
    old.unmap()
    bus.map(0x1000, 0x100, Recorder(2), name="new")
    old.unmap()
    assert bus.read(0x1000, 4) == 2


def test_move_answers_at_the_new_place_only():
    bus = Bus()
    mapping = bus.map(0x1000, 0x100, Recorder(5), name="bar")
    mapping.move(0x8000)
    assert (bus.read(0x1000, 4), bus.read(0x8000, 4)) == (0, 5)
    assert str(mapping) == "bar (0x8000-0x80ff)"


def test_move_may_overlap_the_place_it_leaves():
    bus = Bus()
    mapping = bus.map(0x1000, 0x100, Recorder(5), name="bar")
    mapping.move(0x1080)
    assert [bus.read(address, 4) for address in (0x1000, 0x1080, 0x117C)] == [0, 5, 5]


@pytest.mark.parametrize("new_base", [0x2080, 2**64 - 0x80])
def test_move_to_an_impossible_place_is_refused_and_changes_nothing(new_base):
    bus = Bus()
    mapping = bus.map(0x1000, 0x100, Recorder(5), name="bar")
    bus.map(0x2000, 0x100, Recorder(6), name="uart")
    before = bus.describe()
    with pytest.raises(BusError):
        mapping.move(new_base)
    assert bus.describe() == before
    assert (bus.read(0x1000, 4), bus.read(0x2000, 4)) == (5, 6)


def test_move_of_an_unmapped_device_is_refused():
    mapping = Bus().map(0x1000, 0x100, Recorder(), name="bar")
    mapping.unmap()
    with pytest.raises(BusError, match=r"bar cannot move to 0x8000-0x80ff: it is not on the bus\."):
        mapping.move(0x8000)


def test_after_runs_once_the_lock_was_dropped():
    bus, device, seen = Bus(), Recorder(), []
    bus.map(0x1000, 0x100, device, name="d")
    device.after = lambda: seen.append(device.lock.locked())
    bus.write(0x1000, 4, 1)
    assert seen == [False]


def test_after_may_unmap_and_move_the_device_that_asked():
    bus, device = Bus(), Recorder(3)
    mapping = bus.map(0x1000, 0x100, device, name="d")
    device.after = lambda: mapping.move(0x4000)
    bus.write(0x1000, 4, 1)
    assert bus.read(0x4000, 4) == 3
    device.after = mapping.unmap
    bus.write(0x4000, 4, 1)
    assert bus.describe() == []


@pytest.mark.parametrize("change", [lambda mapping: mapping.unmap(), lambda mapping: mapping.move(0x9000)])
def test_change_waits_for_the_access_inside_the_device(change):
    bus, device = Bus(), Gate()
    mapping = bus.map(0x1000, 0x100, device, name="d")
    reader = start(lambda: bus.read(0x1000, 4))
    assert device.inside.wait(JOIN_SECONDS)
    returned = threading.Event()
    changer = start(lambda: (change(mapping), returned.set()))
    while bus.find(0x1000) is not None:  # published before it waits
        pass
    assert not returned.is_set()
    device.leave.set()
    finish(reader)
    finish(changer)
    assert returned.is_set()


@pytest.mark.parametrize("access", [lambda bus: bus.read(0x1000, 4), lambda bus: bus.write(0x1000, 4, 1)])
def test_access_on_its_way_in_does_not_enter_after_unmap(access):
    """The other thread has searched the old table and waits for the device's lock when the mapping goes."""

    class SlowLock:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.reached = threading.Event()
            self.go_on = threading.Event()
            self.other: threading.Thread | None = None

        def acquire(self):
            if threading.current_thread() is self.other:
                self.reached.set()
                assert self.go_on.wait(JOIN_SECONDS)
            self.lock.acquire()

        def release(self):
            self.lock.release()

        def __enter__(self):
            self.acquire()

        def __exit__(self, *_):
            self.release()

        def locked(self):
            return self.lock.locked()

    bus, device = Bus(), Recorder(7)
    device.lock = lock = SlowLock()
    mapping = bus.map(0x1000, 0x100, device, name="d")
    lock.other = threading.Thread(target=lambda: access(bus), daemon=True)
    lock.other.start()
    assert lock.reached.wait(JOIN_SECONDS)
    mapping.unmap()
    lock.go_on.set()
    finish(lock.other)
    assert device.accesses == []
    assert bus.unclaimed.total == 1


def test_other_devices_answer_while_one_is_busy():
    bus, busy, idle = Bus(), Gate(), Recorder(4)
    bus.map(0x1000, 0x100, busy, name="busy")
    bus.map(0x2000, 0x100, idle, name="idle")
    reader = start(lambda: bus.read(0x1000, 4))
    assert busy.inside.wait(JOIN_SECONDS)
    assert bus.read(0x2000, 4) == 4
    bus.map(0x3000, 0x100, Recorder(), name="new")
    busy.leave.set()
    finish(reader)


def test_lock_is_dropped_when_a_device_fails():
    class Broken(Recorder):
        def read(self, offset, size):
            raise RuntimeError

    bus, device = Bus(), Broken()
    bus.map(0x1000, 0x100, device, name="d")
    with pytest.raises(RuntimeError):
        bus.read(0x1000, 4)
    assert not device.lock.locked()


def test_moves_and_accesses_race_without_loss():
    """Each access lands in the device or in the count, none in both or neither."""
    bus, device = Bus(), Recorder(1)
    mapping = bus.map(0x1000, 0x100, device, name="d")
    rounds, hits = 2000, []

    def access():
        hits.append(sum(bus.read(0x1000, 4) for _ in range(rounds)))

    readers = [start(access) for _ in range(2)]
    while any(reader.is_alive() for reader in readers):
        mapping.move(0x2000)
        mapping.move(0x1000)
    for reader in readers:
        finish(reader)
    assert sum(hits) == len(device.accesses)
    assert sum(hits) + bus.unclaimed.total == 2 * rounds


class Counter(RegisterDevice):
    NAME = "counter"
    SIZE = 0x100
    VALUE = Reg(0x04, 16)

    def __init__(self):
        super().__init__()
        self.reset()


class Scaled(Counter):
    """Registers twice as far apart as they are declared, and inverted."""

    def read(self, offset, size):
        return super().read(offset // 2, size) ^ 0xFFFF

    def write(self, offset, size, value):
        return super().write(offset // 2, size, value ^ 0xFFFF)


def test_register_reached_before_is_reached_again():
    bus, device = Bus(), Counter()
    bus.map(0x1000, 0x100, device, name="d")
    for value in (1, 2, 3):
        bus.write(0x1004, 2, value)
        assert (device.VALUE, bus.read(0x1004, 2)) == (value, value)
    assert bus.accesses() == {"d": 6}


def test_device_with_a_read_and_write_of_its_own_is_never_passed_by():
    bus, device = Bus(), Scaled()
    bus.map(0x1000, 0x100, device, name="d")
    device.write(4, 2, 0)  # compiles an access that is not one to offset 4
    for value in (1, 2):
        bus.write(0x1008, 2, value)
        assert (device.VALUE, bus.read(0x1008, 2)) == (value ^ 0xFFFF, value)
        assert bus.read(0x1004, 2) == 0xFFFF  # offset 2: nothing
