# SPDX-License-Identifier: Apache-2.0
"""The host bridge: who is at which address, and where BARs answer."""

import threading
from functools import partial

import pytest
from fakes.pci import (
    BARS,
    BUS_MASTER,
    ECAM,
    HIGH,
    HIGH_SIZE,
    IO_BASE,
    IO_SPACE,
    LOW,
    LOW_SIZE,
    MEMORY_SPACE,
    PciBus,
    Probe,
    function,
)
from fakes.threads import Background

from pyvmm.devices.pci.bar import IO, MEMORY_32, MEMORY_64, Bar
from pyvmm.devices.pci.intx import wire_of
from pyvmm.errors import ConfigError

PAGE = 0x1000


def test_slot_zero_is_a_host_bridge():
    config = PciBus().at("00:00.0")
    assert config.read(0, 4) == 0x0008_1B36
    assert config.read(8, 4) >> 8 == 0x06_00_00
    assert config.read(0x3D, 1) == 0


@pytest.mark.parametrize("size", [1, 2, 4])
def test_absent_function_reads_all_ones_and_takes_writes(size):
    config = PciBus().at("00:1f.7")
    config.write(4, size, 0)
    assert config.read(0, size) == (1 << 8 * size) - 1


def test_functions_take_slots_first_and_then_share_them():
    pci = PciBus(*(function() for _ in range(33)))
    assert pci.addresses[0] == "00:01.0"
    assert pci.addresses[30:] == ["00:1f.0", "00:01.1", "00:02.1"]
    headers = [pci.at(address).read(0x0E, 1) for address in ("00:01.0", "00:01.1", "00:02.0", "00:03.0")]
    assert headers == [0x80, 0x80, 0x80, 0]


def test_bus_that_is_full_says_so():
    pci = PciBus(*(function() for _ in range(248)))
    assert pci.addresses[-1] == "00:1f.7"
    with pytest.raises(ConfigError, match="no room for probe"):
        pci.host.add(function())


def test_functions_are_listed_by_address():
    pci = PciBus(function(name="a"), function(name="b"))
    named = [(address, device.name) for address, device in pci.host.functions()]
    assert named == [("00:00.0", "host-bridge"), ("00:01.0", "a"), ("00:02.0", "b")]


def test_neighbouring_slots_and_pins_use_different_wires():
    assert [wire_of(slot, 1) for slot in range(1, 6)] == [1, 2, 3, 0, 1]
    assert [wire_of(1, pin) for pin in (1, 2, 3, 4)] == [1, 2, 3, 0]


def test_access_across_the_edge_of_a_function_is_counted():
    pci = PciBus(function())
    assert pci.bus.read(ECAM + (1 << 15) + 0xFFE, 4) == 0xFFFF_FFFF
    pci.bus.write(ECAM + (1 << 15) + 0xFFE, 4, 0)
    assert pci.host.odd == 2


def test_decode_names_function_and_register():
    pci = PciBus(function())
    assert pci.host.decode(1 << 15 | 4, 2, True, 2) == ("00:01.0.COMMAND", "memory=1")
    assert pci.host.decode(2 << 15 | 4, 2, True, 2) == ("00:02.0+0x4", "")


def test_state_of_the_bus_moves_to_another():
    one = PciBus(function(Bar(0, PAGE, Probe())))
    one.at("00:01.0").place(0, LOW)
    one.at("00:01.0").command(MEMORY_SPACE)
    other = PciBus(function(Bar(0, PAGE, Probe())))
    other.host.load_state(one.host.state())
    other.host.settle_all()
    assert other.mapped() == one.mapped() == {"probe.bar0": LOW}


def test_state_of_a_bus_with_other_functions_is_refused():
    with pytest.raises(ConfigError, match="other PCI devices"):
        PciBus(function()).host.load_state(PciBus().host.state())
    with pytest.raises(ConfigError, match="other PCI devices"):
        PciBus().host.load_state(PciBus(function()).host.state())


def test_reset_takes_every_bar_off_the_bus():
    pci = PciBus(function(Bar(0, PAGE, Probe())))
    pci.at("00:01.0").place(0, LOW)
    pci.at("00:01.0").command(MEMORY_SPACE)
    with pci.host.lock:
        pci.host.reset()
    pci.host.settle_all()
    assert pci.mapped() == {}


# Sizing


@pytest.mark.parametrize(
    ("kind", "prefetchable", "size", "mask"),
    [
        (MEMORY_32, False, PAGE, 0xFFFF_F000),
        (MEMORY_32, True, 1 << 20, 0xFFF0_0008),
        (MEMORY_64, False, 0x4000, 0xFFFF_C004),
        (MEMORY_64, True, PAGE, 0xFFFF_F00C),
        (IO, False, 16, 0xFFFF_FFF1),
        (IO, False, 256, 0xFFFF_FF01),
    ],
)
def test_bar_tells_its_size_and_kind(kind, prefetchable, size, mask):
    pci = PciBus(function(Bar(0, size, Probe(), kind=kind, prefetchable=prefetchable)))
    config = pci.at("00:01.0")
    assert config.read(BARS, 4) == mask & 0xF
    assert config.sized(0) == mask


def test_upper_half_of_a_wide_bar_is_all_address_bits_and_the_next_register_is_no_bar():
    pci = PciBus(function(Bar(2, PAGE, Probe(), kind=MEMORY_64)))
    config = pci.at("00:01.0")
    assert [config.sized(index) for index in range(6)] == [0, 0, 0xFFFF_F004, 0xFFFF_FFFF, 0, 0]


def test_bar_larger_than_four_gib_masks_its_upper_half():
    pci = PciBus(function(Bar(0, 1 << 33, Probe(), kind=MEMORY_64)))
    config = pci.at("00:01.0")
    assert [config.sized(index) for index in (0, 1)] == [0x0000_0004, 0xFFFF_FFFE]


def test_sizing_a_bar_in_use_ends_where_it_began():
    pci = PciBus(function(Bar(0, PAGE, Probe(5))))
    config = pci.at("00:01.0")
    config.place(0, LOW)
    config.command(MEMORY_SPACE)
    config.sized(0)
    assert pci.bus.read(LOW, 4) == 5


# Placing


def test_bar_answers_only_while_memory_is_decoded():
    probe = Probe(0x1234_5678)
    pci = PciBus(function(Bar(0, PAGE, probe)))
    config = pci.at("00:01.0")
    config.place(0, LOW + PAGE)
    assert pci.mapped() == {}
    config.command(MEMORY_SPACE)
    assert pci.bus.read(LOW + PAGE, 4) == 0x1234_5678
    pci.bus.write(LOW + PAGE + 8, 2, 0xABCD)
    assert probe.writes == [(8, 2, 0xABCD)]
    config.command(IO_SPACE | BUS_MASTER)
    assert pci.mapped() == {}


def test_bar_in_use_moves_with_its_register():
    pci = PciBus(function(Bar(0, PAGE, Probe(5))))
    config = pci.at("00:01.0")
    config.command(MEMORY_SPACE)
    config.place(0, LOW)
    config.place(0, LOW + 0x8000)
    assert pci.mapped() == {"probe.bar0": LOW + 0x8000}
    assert pci.bus.read(LOW, 4) == 0


def test_io_bar_answers_at_the_window_of_the_processor():
    pci = PciBus(function(Bar(0, 32, Probe(5), kind=IO)))
    config = pci.at("00:01.0")
    config.place(0, 0x1000)
    config.command(MEMORY_SPACE)
    assert pci.mapped() == {}
    config.command(IO_SPACE)
    assert pci.mapped() == {"probe.bar0": IO_BASE + 0x1000}


@pytest.mark.parametrize("address", [HIGH, HIGH + HIGH_SIZE - PAGE, LOW])
def test_wide_bar_can_lie_in_either_memory_window(address):
    pci = PciBus(function(Bar(0, PAGE, Probe(), kind=MEMORY_64)))
    config = pci.at("00:01.0")
    config.place_wide(0, address)
    config.command(MEMORY_SPACE)
    assert pci.mapped() == {"probe.bar0": address}


@pytest.mark.parametrize(
    "address",
    [0, 0x0800_0000, 0x1000_0000, ECAM, LOW - PAGE, LOW + LOW_SIZE, 0x8000_0000, 0xFFFF_F000, HIGH - PAGE,
     HIGH + HIGH_SIZE, 2**64 - PAGE],
)  # fmt: skip
def test_bar_outside_of_the_windows_does_not_answer(address):
    pci = PciBus(function(Bar(0, PAGE, Probe(), kind=MEMORY_64)))
    config = pci.at("00:01.0")
    config.place_wide(0, address)
    config.command(MEMORY_SPACE)
    assert pci.mapped() == {}
    assert pci.host.conflicts == 0


def test_io_bar_at_the_last_port_answers_and_beyond_does_not():
    pci = PciBus(function(Bar(0, 16, Probe(), kind=IO)))
    config = pci.at("00:01.0")
    config.command(IO_SPACE)
    config.place(0, 0xFFF0)
    assert pci.mapped() == {"probe.bar0": IO_BASE + 0xFFF0}
    config.place(0, 0x1_0000)
    assert pci.mapped() == {}


def test_bar_on_another_bar_stays_off_the_bus_and_is_counted():
    pci = PciBus(
        function(Bar(0, PAGE, Probe(1)), name="one"), function(Bar(0, 4 * PAGE, Probe(2)), name="two")
    )
    for address in pci.addresses:
        pci.at(address).command(MEMORY_SPACE)
    pci.at("00:01.0").place(0, LOW + PAGE)
    pci.at("00:02.0").place(0, LOW)
    assert pci.mapped() == {"one.bar0": LOW + PAGE}
    assert pci.host.conflicts == 1


def test_bar_moved_onto_another_leaves_its_old_place():
    pci = PciBus(function(Bar(0, PAGE, Probe(1)), Bar(1, PAGE, Probe(2))))
    config = pci.at("00:01.0")
    config.command(MEMORY_SPACE)
    config.place(0, LOW)
    config.place(1, LOW + PAGE)
    config.place(1, LOW)
    assert pci.mapped() == {"probe.bar0": LOW}
    assert pci.bus.read(LOW + PAGE, 4) == 0


def test_bar_comes_back_when_the_one_in_its_place_leaves():
    pci = PciBus(function(Bar(0, PAGE, Probe(1)), name="one"), function(Bar(0, PAGE, Probe(2)), name="two"))
    for address in pci.addresses:
        pci.at(address).place(0, LOW)
        pci.at(address).command(MEMORY_SPACE)
    assert pci.mapped() == {"one.bar0": LOW}
    pci.at("00:01.0").place(0, LOW + PAGE)
    assert pci.mapped() == {"one.bar0": LOW + PAGE, "two.bar0": LOW}
    assert pci.host.conflicts == 1


def test_conflict_that_lasts_counts_once():
    pci = PciBus(*(function(Bar(0, PAGE, Probe()), name=name) for name in ("one", "two", "three")))
    for address, place in zip(pci.addresses, (LOW, LOW, LOW + PAGE), strict=True):
        pci.at(address).place(0, place)
        pci.at(address).command(MEMORY_SPACE)
    pci.at("00:03.0").command(0)
    assert pci.mapped() == {"one.bar0": LOW}
    assert pci.host.conflicts == 1


def test_two_bars_of_one_function_change_places_whole():
    pci = PciBus(function(Bar(0, PAGE, Probe(1)), Bar(1, PAGE, Probe(2))))
    config = pci.at("00:01.0")
    config.place(0, LOW)
    config.place(1, LOW + PAGE)
    config.command(MEMORY_SPACE)
    config.place(0, LOW + PAGE)
    config.place(1, LOW)
    assert pci.mapped() == {"probe.bar0": LOW + PAGE, "probe.bar1": LOW}


def test_on_place_hears_of_every_change_with_no_lock_held():
    heard = []
    device = function()

    def on_place(address):
        assert not device.lock.locked()
        assert not pci.host.lock.locked()
        heard.append((address, dict(pci.mapped())))

    device.add_bar(Bar(0, PAGE, Probe(), on_place=on_place))
    pci = PciBus(device)
    config = pci.at("00:01.0")
    config.place(0, LOW)
    config.command(MEMORY_SPACE)
    config.command(MEMORY_SPACE | BUS_MASTER)
    config.place(0, LOW)
    config.place(0, LOW + PAGE)
    config.place(0, 0x8000_0000)
    config.place(0, ECAM)
    assert heard == [(LOW, {"probe.bar0": LOW}), (LOW + PAGE, {"probe.bar0": LOW + PAGE}), (None, {})]


def test_on_place_hears_none_when_the_new_place_is_taken():
    heard = []
    pci = PciBus(function(Bar(0, PAGE, Probe(1)), Bar(1, PAGE, Probe(2), on_place=heard.append)))
    config = pci.at("00:01.0")
    config.command(MEMORY_SPACE)
    config.place(0, LOW)
    config.place(1, LOW + PAGE)
    config.place(1, LOW)
    assert heard == [LOW + PAGE, None]


# Several harts at once


def test_harts_that_move_bars_at_once_leave_the_bus_as_the_registers_are():
    heard = {}
    devices = [
        function(
            Bar(0, PAGE, Probe(), on_place=lambda where, name=name: heard.update({name: where})), name=name
        )
        for name in ("one", "two")
    ]
    pci = PciBus(*devices)
    start = threading.Barrier(4)

    def move(address, step):
        config = pci.at(address)
        start.wait()
        for turn in range(100):
            config.command(MEMORY_SPACE if turn % 5 else 0)
            config.place(0, LOW + (turn * step % 8) * PAGE)
        config.command(MEMORY_SPACE)

    harts = [Background(partial(move, address, step)) for address in pci.addresses for step in (1, 3)]
    for hart in harts:
        hart.result()
    wanted = {device.name: device.header.bus_address(device.bars[0]) for device in devices}
    mapped = {name.removesuffix(".bar0"): base for name, base in pci.mapped().items()}
    assert {name: base for name, base in heard.items() if base is not None} == mapped
    assert set(mapped.values()) == set(wanted.values())
    assert all(wanted[name] == base for name, base in mapped.items())


def test_access_during_moves_reaches_the_device_or_nothing():
    pci = PciBus(function(Bar(0, PAGE, Probe(0x55))))
    config = pci.at("00:01.0")
    config.place(0, LOW)
    config.command(MEMORY_SPACE)
    done = threading.Event()

    def look():
        seen = set()
        while not done.is_set():
            seen |= {pci.bus.read(LOW, 4), pci.bus.read(LOW + PAGE, 4)}
        return seen

    reader = Background(look)
    try:
        for _ in range(100):
            config.place(0, LOW + PAGE)
            config.place(0, LOW)
    finally:
        done.set()
    assert reader.result() <= {0, 0x55}
    assert pci.bus.read(LOW, 4) == 0x55
