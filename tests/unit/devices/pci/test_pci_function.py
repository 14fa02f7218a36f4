# SPDX-License-Identifier: Apache-2.0
"""Configuration space of one function, as a driver sees it."""

import pytest
from fakes.lines import RecordingMsiLines
from fakes.pci import (
    CAPABILITIES,
    COMMAND,
    IDENTITY,
    INTX_DISABLE,
    PIN,
    STATUS,
    PciBus,
    Probe,
    function,
)

from pyvmm.devices.pci.bar import MEMORY_32, MEMORY_64, Bar
from pyvmm.devices.pci.capability import Capability
from pyvmm.devices.pci.function import PciFunction
from pyvmm.devices.pci.msi import Msi
from pyvmm.devices.pci.msix import Msix
from pyvmm.devices.pci.registers import both
from pyvmm.errors import ConfigError
from pyvmm.mmio.regs import Reg


class Vendor(Capability):
    ID = 0x09
    NAME = "vendor"
    SIZE = 0x07
    LENGTH = Reg(0x02, 8, access="r", reset=7)
    SCRATCH = Reg(0x04, 16, sizes=(1, 2))

    def __init__(self):
        super().__init__()
        self.reset()


def on_bus(device):
    pci = PciBus(device)
    return pci.at(pci.addresses[0])


def test_header_says_what_the_function_is():
    config = on_bus(function(pin=2))
    assert config.read(0x00, 4) == 0x1041_1AF4
    assert config.read(0x08, 4) == 0x02_00_00_01
    assert config.read(0x0C, 4) == 0
    assert config.read(0x2C, 4) == 0x0040_1AF4
    assert config.read(PIN, 1) == 2


@pytest.mark.parametrize(("size", "values"), [(1, [0xF4, 0x1A, 0x41, 0x10]), (2, [0x1AF4, 0x1041])])
def test_parts_of_a_word_read_alone(size, values):
    config = on_bus(function())
    assert [config.read(offset, size) for offset in range(0, 4, size)] == values


def test_identity_cannot_be_written():
    config = on_bus(function())
    before = [config.read(offset, 4) for offset in range(0, 0x40, 4)]
    for offset in (0x00, 0x08, 0x28, 0x2C, 0x30, 0x34, 0x38):
        config.write(offset, 4, 0xFFFF_FFFF)
    assert [config.read(offset, 4) for offset in range(0, 0x40, 4)] == before


def test_command_and_status_written_as_one_word_keep_their_own_rules():
    config = on_bus(function())
    config.write(COMMAND, 4, 0xFFFF_FFFF)
    assert config.read(COMMAND, 2) == 0x0407
    assert config.read(STATUS, 2) == 0


def test_byte_written_into_a_word_leaves_the_other_bytes():
    config = on_bus(function())
    config.write(COMMAND, 2, 0x0407)
    config.write(COMMAND + 1, 1, 0)
    assert config.read(COMMAND, 2) == 0x0007


def test_interrupt_line_is_scratch():
    config = on_bus(function())
    config.write(0x3C, 4, 0xFFFF_FF2A)
    assert config.read(0x3C, 4) == 0x0000_012A


def test_what_is_reserved_reads_zero():
    config = on_bus(function())
    for offset in (0x38, 0x40, 0x80, 0xFC, 0x100, 0xFFC):
        config.write(offset, 4, 0xFFFF_FFFF)
        assert config.read(offset, 4) == 0


@pytest.mark.parametrize(("offset", "size"), [(0x01, 2), (0x02, 4), (0x00, 8), (0x3F, 4)])
def test_access_that_is_not_aligned_or_too_wide_reads_zero_and_is_counted(offset, size):
    device = function()
    assert device.config_read(offset, size) == 0
    assert device.config_write(offset, size, 1) is None
    assert device.odd == 2


def test_bus_mastering_follows_the_command_register():
    device = function()
    config = on_bus(device)
    assert not device.bus_master
    config.command(4)
    assert device.bus_master


def test_function_without_capabilities_has_no_list():
    config = on_bus(function())
    assert config.read(CAPABILITIES, 1) == 0
    assert config.read(STATUS, 2) & 0x10 == 0


def test_capabilities_are_linked_in_the_order_they_came():
    device = function()
    msix = Msix(1, RecordingMsiLines(), bar=1)
    offsets = [device.add_capability(part) for part in (Vendor(), msix, Msi(RecordingMsiLines()))]
    config = on_bus(device)
    assert config.capabilities() == [(0x09, 0x40), (0x11, 0x48), (0x05, 0x54)]
    assert offsets == [0x40, 0x48, 0x54]
    assert config.read(STATUS, 2) & 0x10


def test_capability_registers_are_at_its_offset_and_the_rest_of_its_last_word_reads_zero():
    device = function()
    device.add_capability(Vendor())
    config = on_bus(device)
    config.write(0x44, 4, 0xFFFF_FFFF)
    assert config.read(0x40, 4) == 0x0007_0009
    assert config.read(0x44, 4) == 0x0000_FFFF


def test_list_that_does_not_fit_is_refused():
    device = function()
    for _ in range(24):
        device.add_capability(Vendor())
    with pytest.raises(ValueError, match="no room for vendor"):
        device.add_capability(Vendor())


@pytest.mark.parametrize(("index", "kind"), [(0, MEMORY_32), (1, MEMORY_32), (5, MEMORY_64), (6, MEMORY_32)])
def test_bar_whose_register_is_taken_or_missing_is_refused(index, kind):
    device = function(Bar(0, 0x1000, Probe(), kind=MEMORY_64))
    with pytest.raises(ValueError, match=f"BAR {index}"):
        device.add_bar(Bar(index, 0x1000, Probe(), kind=kind))


@pytest.mark.parametrize(("size", "kind"), [(0x800, MEMORY_32), (0x1800, MEMORY_64), (0, MEMORY_32), (8, 0)])
def test_bar_of_an_impossible_size_is_refused(size, kind):
    with pytest.raises(ValueError, match="BAR 0"):
        Bar(0, size, Probe(), kind=kind)


def test_every_part_shares_the_lock_of_the_function():
    probe, vendor = Probe(), Vendor()
    device = function(Bar(0, 0x1000, probe))
    device.add_capability(vendor)
    assert device.lock is probe.lock is vendor.lock is device.header.lock


def test_decode_names_registers_of_header_and_capabilities():
    device = function()
    device.add_capability(Msi(RecordingMsiLines()))
    assert device.decode(0x04, 2, True, 6) == ("COMMAND", "memory=1 bus_master=1")
    assert device.decode(0x04, 4, True, 6) == ("COMMAND+STATUS", "memory=1 bus_master=1")
    assert device.decode(0x42, 2, True, 1) == ("msi.MESSAGE_CONTROL", "enable=1")
    assert device.decode(0x14, 4, False, 0) == ("BASE_ADDRESS[1]", "")
    assert device.decode(0x38, 4, False, 0) == ("+0x38", "")
    assert device.decode(0x80, 4, False, 0) == ("+0x80", "")


# INTx


def test_interrupt_reaches_the_wire_of_its_slot_and_shows_in_status():
    device = function()
    pci = PciBus(device)
    with device.lock:
        device.set_intx(True)
    assert [wire.level for wire in pci.wires] == [False, True, False, False]
    assert pci.at("00:01.0").read(STATUS, 2) & 8
    with device.lock:
        device.set_intx(False)
    assert pci.wires[1].changes == [True, False]
    assert pci.at("00:01.0").read(STATUS, 2) & 8 == 0


def test_disabled_interrupt_is_pending_but_not_on_the_wire():
    device = function()
    pci = PciBus(device)
    pci.at("00:01.0").command(INTX_DISABLE)
    with device.lock:
        device.set_intx(True)
    assert pci.wires[1].changes == []
    assert pci.at("00:01.0").read(STATUS, 2) & 8
    pci.at("00:01.0").command(0)
    assert pci.wires[1].changes == [True]
    pci.at("00:01.0").command(INTX_DISABLE)
    assert pci.wires[1].changes == [True, False]


def test_shared_wire_is_high_until_the_last_function_lowers_it():
    devices = [function() for _ in range(5)]
    pci = PciBus(*devices)
    first, fifth = devices[0], devices[4]  # slots 1 and 5
    first.set_intx(True)
    fifth.set_intx(True)
    first.set_intx(False)
    assert pci.wires[1].changes == [True]
    fifth.set_intx(False)
    assert pci.wires[1].changes == [True, False]


def test_disabling_one_of_two_on_a_wire_leaves_the_other():
    devices = [function() for _ in range(5)]
    pci = PciBus(*devices)
    devices[0].set_intx(True)
    devices[4].set_intx(True)
    pci.at("00:01.0").command(INTX_DISABLE)
    assert pci.wires[1].changes == [True]


def test_pulse_on_a_wire_input_ends_low():
    pci = PciBus(function())
    pci.host._wires[2].input().pulse()
    assert pci.wires[2].changes == [True, False]


def test_function_without_a_pin_has_no_wire():
    device = function(pin=0)
    pci = PciBus(device)
    device.set_intx(True)
    assert not any(wire.changes for wire in pci.wires)


def test_messages_take_the_place_of_the_wire_and_give_it_back():
    device = function()
    msi = Msi(RecordingMsiLines())
    device.add_capability(msi)
    pci = PciBus(device)
    device.set_intx(True)
    pci.at("00:01.0").write(0x42, 2, 1)
    assert pci.wires[1].changes == [True, False]
    pci.at("00:01.0").write(0x42, 2, 0)
    assert pci.wires[1].changes == [True, False, True]


# Life


def filled():
    device = function(Bar(0, 0x1000, Probe(7)))
    device.add_capability(Msi(RecordingMsiLines()))
    device.add_capability(Vendor())
    return device


def test_reset_returns_every_part_to_power_on():
    device = filled()
    pci = PciBus(device)
    config = pci.at("00:01.0")
    fresh = device.state()
    config.place(0, 0x4000_0000)
    config.command(0x0406)
    config.write(0x54, 2, 0x1234)
    device.set_intx(True)
    assert device.state() != fresh
    with device.lock:
        device.reset()
    device.settle()
    assert device.state() == fresh
    assert pci.mapped() == {}
    assert pci.wires[1].level is False


def test_wire_works_again_after_a_reset():
    device = function()
    pci = PciBus(device)
    pci.at("00:01.0").command(INTX_DISABLE)
    with device.lock:
        device.reset()
        device.set_intx(True)
    assert pci.wires[1].changes == [True]


class Eager(Probe):
    """It interrupts when it is told what it was before."""

    def load_state(self, state):
        super().load_state(state)
        self.function.set_intx(True)


@pytest.mark.parametrize("command", [0, INTX_DISABLE])
def test_wire_is_as_the_whole_state_says_once_it_was_loaded(command):
    saved, probe = function(Bar(0, 0x1000, Eager(7))), Eager(7)
    PciBus(saved).at("00:01.0").command(command)
    probe.function = other = function(Bar(0, 0x1000, probe))
    pci = PciBus(other)
    other.load_state(saved.state())
    assert pci.wires[1].changes == [True] * (not command)


def test_state_moves_to_another_function_and_its_bars_follow():
    device, other = filled(), filled()
    config = PciBus(device).at("00:01.0")
    config.place(0, 0x4000_0000)
    config.command(2)
    device.set_intx(True)
    pci = PciBus(other)
    other.load_state(device.state())
    other.settle()
    assert other.state() == device.state()
    assert pci.mapped() == {"probe.bar0": 0x4000_0000}
    assert pci.wires[1].level is True


def test_state_of_another_function_is_refused():
    with pytest.raises(ConfigError, match="that of another device"):
        function().load_state(filled().state())


def test_damaged_state_is_refused():
    state = filled().state()
    state["header"] = 5
    with pytest.raises(ConfigError, match="header has another form"):
        filled().load_state(state)


def test_function_on_no_bus_settles_to_nothing():
    device = PciFunction("loose", IDENTITY)
    device.set_intx(True)
    device.settle()
    assert device.header.interrupt


def test_both_runs_what_two_writes_ask_for():
    calls = []
    assert both(None, None) is None
    one = both(None, lambda: calls.append(1))
    both(one, lambda: calls.append(2))()
    assert calls == [1, 2]


def test_close_releases_the_lines():
    device, lines = function(), RecordingMsiLines()
    device.add_capability(Msi(lines))
    device.add_capability(Msix(2, lines, bar=1))
    PciBus(device).host.close()
    assert [line.is_closed for line in lines.made] == [True] * 3
