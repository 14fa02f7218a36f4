# SPDX-License-Identifier: Apache-2.0
"""MSI: one message, sent as the guest programmed it, while enabled."""

import pytest
from fakes.lines import RecordingMsiLines
from fakes.pci import PciBus, function

from pyvmm.devices.pci.msi import Msi

CONTROL, ADDRESS, UPPER, DATA = 0x42, 0x44, 0x48, 0x4C


@pytest.fixture
def rig():
    return Rig()


class Rig:
    def __init__(self):
        lines = RecordingMsiLines()
        self.msi = Msi(lines)
        (self.line,) = lines.made
        self.device = function()
        self.device.add_capability(self.msi)
        self.pci = PciBus(self.device)
        self.config = self.pci.at("00:01.0")

    def program(self, address, data):
        self.config.write(ADDRESS, 4, address & 0xFFFF_FFFF)
        self.config.write(UPPER, 4, address >> 32)
        self.config.write(DATA, 2, data)


def test_capability_says_one_vector_with_64_bit_address(rig):
    assert rig.config.read(0x40, 4) == 0x0080_0005


def test_disabled_msi_leaves_the_interrupt_to_the_wire(rig):
    rig.program(0x2800_0000, 5)
    assert rig.msi.signal() is False
    assert rig.line.programmed == []
    assert rig.line.delivered == []
    assert not rig.line.waiting


def test_enabled_msi_sends_the_programmed_message(rig):
    rig.program(0x1_2800_1000, 5)
    rig.config.write(CONTROL, 2, 1)
    assert rig.msi.signal() is True
    assert rig.line.delivered == [(0x1_2800_1000, 5)]


def test_message_changed_while_enabled_is_programmed_at_once(rig):
    rig.program(0x2800_0000, 5)
    rig.config.write(CONTROL, 2, 1)
    rig.program(0x2800_1000, 6)
    assert rig.line.message == (0x2800_1000, 6)
    rig.msi.signal()
    assert rig.line.delivered == [(0x2800_1000, 6)]


def test_bytes_of_the_address_can_be_written_alone_and_its_low_bits_are_zero(rig):
    rig.config.write(ADDRESS + 3, 1, 0x28)
    rig.config.write(ADDRESS, 1, 0xFF)
    assert rig.config.read(ADDRESS, 4) == 0x2800_00FC


def test_disabling_shuts_the_line(rig):
    rig.config.write(CONTROL, 2, 1)
    rig.config.write(CONTROL, 2, 0)
    assert not rig.line.is_open
    assert rig.msi.signal() is False


def test_writing_other_bits_of_control_changes_nothing_for_the_line(rig):
    rig.config.write(CONTROL, 2, 1)
    before = list(rig.line.programmed)
    rig.config.write(CONTROL, 2, 0xFFFF)
    assert rig.config.read(CONTROL, 2) == 0x00F1
    assert rig.line.programmed == before


def test_reset_shuts_the_line_and_forgets_the_message(rig):
    rig.program(0x2800_0000, 5)
    rig.config.write(CONTROL, 2, 1)
    rig.device.reset()
    assert not rig.line.is_open
    assert rig.config.read(ADDRESS, 4) == 0


def test_restored_msi_delivers(rig):
    rig.program(0x2800_0000, 5)
    rig.config.write(CONTROL, 2, 1)
    other = Rig()
    other.device.load_state(rig.device.state())
    other.msi.signal()
    assert other.line.delivered == [(0x2800_0000, 5)]
