# SPDX-License-Identifier: Apache-2.0
"""MSI-X: what is delivered, when, and what a mask keeps back."""

import pytest
from fakes.lines import RecordingMsiLines
from fakes.pci import LOW, MEMORY_SPACE, PciBus, function

from pyvmm.devices.pci.msix import MAX_VECTORS, Msix

CONTROL = 0x42
ENABLE, FUNCTION_MASK = 0x8000, 0x4000
PENDING = 0x800


class Rig:
    def __init__(self, vectors=3):
        lines = RecordingMsiLines()
        self.msix = Msix(vectors, lines, bar=1)
        self.lines = lines.made
        self.device = function()
        self.device.add_bar(self.msix.bar)
        self.device.add_capability(self.msix)
        self.pci = PciBus(self.device)
        self.config = self.pci.at("00:01.0")
        self.config.place(1, LOW)
        self.config.command(MEMORY_SPACE)

    def control(self, value):
        self.config.write(CONTROL, 2, value)

    def read(self, offset, size):
        return self.pci.bus.read(LOW + offset, size)

    def write(self, offset, size, value):
        self.pci.bus.write(LOW + offset, size, value)

    def program(self, vector, address, data, *, masked=0):
        self.write(16 * vector, 4, address & 0xFFFF_FFFF)
        self.write(16 * vector + 4, 4, address >> 32)
        self.write(16 * vector + 8, 4, data)
        self.write(16 * vector + 12, 4, masked)

    def mask(self, vector, masked):
        self.write(16 * vector + 12, 4, masked)


@pytest.fixture
def rig():
    return Rig()


def test_capability_says_how_many_vectors_there_are_and_where(rig):
    assert rig.config.read(0x40, 4) == 0x0002_0011
    assert rig.config.read(0x44, 4) == 1
    assert rig.config.read(0x48, 4) == 0x801


@pytest.mark.parametrize("vectors", [0, MAX_VECTORS + 1])
def test_number_of_vectors_that_cannot_be_is_refused(vectors):
    with pytest.raises(ValueError, match=f"not {vectors}"):
        Msix(vectors, RecordingMsiLines(), bar=1)


def test_every_vector_is_masked_at_power_on(rig):
    assert [rig.read(16 * vector + 12, 4) for vector in range(3)] == [1, 1, 1]
    rig.control(ENABLE)
    assert not any(line.is_open for line in rig.lines)


def test_disabled_msix_leaves_the_interrupt_to_the_wire(rig):
    rig.program(0, 0x2800_0000, 5)
    assert rig.msix.signal(0) is False
    assert rig.lines[0].programmed == []


def test_each_vector_sends_its_own_message(rig):
    rig.program(0, 0x2800_0000, 5)
    rig.program(2, 0x1_2800_1000, 7)
    rig.control(ENABLE)
    assert rig.msix.signal(0)
    assert rig.msix.signal(2)
    assert [line.delivered for line in rig.lines] == [[(0x2800_0000, 5)], [], [(0x1_2800_1000, 7)]]


def test_entry_takes_eight_bytes_at_once(rig):
    rig.write(16, 8, 0x1_2800_1000)
    rig.write(24, 8, 7)
    assert rig.read(16, 8) == 0x1_2800_1000
    assert rig.read(24, 8) == 7
    rig.control(ENABLE)
    rig.msix.signal(1)
    assert rig.lines[1].delivered == [(0x1_2800_1000, 7)]


def test_reserved_bits_of_an_entry_stay_zero(rig):
    for offset in range(0, 16, 4):
        rig.write(offset, 4, 0xFFFF_FFFF)
    assert [rig.read(offset, 4) for offset in range(0, 16, 4)] == [0xFFFF_FFFC, 0xFFFF_FFFF, 0xFFFF_FFFF, 1]


def test_masked_vector_is_pending_and_delivered_once_when_unmasked(rig):
    rig.program(1, 0x2800_0000, 5, masked=1)
    rig.control(ENABLE)
    assert rig.msix.signal(1)
    assert rig.msix.signal(1)
    assert rig.read(PENDING, 8) == 0b010
    assert rig.lines[1].delivered == []
    rig.mask(1, 0)
    assert rig.lines[1].delivered == [(0x2800_0000, 5)]
    assert rig.read(PENDING, 8) == 0


def test_function_mask_keeps_every_vector_back(rig):
    for vector in range(3):
        rig.program(vector, 0x2800_0000, vector)
    rig.control(ENABLE | FUNCTION_MASK)
    for vector in (0, 2):
        rig.msix.signal(vector)
    assert rig.read(PENDING, 4) == 0b101
    rig.control(ENABLE)
    assert [len(line.delivered) for line in rig.lines] == [1, 0, 1]


def test_unmasking_under_the_function_mask_delivers_nothing_yet(rig):
    rig.program(0, 0x2800_0000, 5, masked=1)
    rig.control(ENABLE | FUNCTION_MASK)
    rig.msix.signal(0)
    rig.mask(0, 0)
    assert rig.lines[0].delivered == []
    rig.control(ENABLE)
    assert rig.lines[0].delivered == [(0x2800_0000, 5)]


def test_message_rewritten_while_masked_is_the_one_delivered(rig):
    rig.program(0, 0x2800_0000, 5)
    rig.control(ENABLE)
    rig.mask(0, 1)
    rig.msix.signal(0)
    rig.program(0, 0x2800_1000, 6)
    assert rig.lines[0].delivered == [(0x2800_1000, 6)]


def test_message_rewritten_while_open_is_programmed_at_once(rig):
    rig.program(0, 0x2800_0000, 5)
    rig.control(ENABLE)
    rig.write(0, 4, 0x2800_1000)
    rig.write(8, 4, 6)
    assert rig.lines[0].message == (0x2800_1000, 6)
    assert rig.lines[0].is_open


def test_unmasking_twice_programs_once(rig):
    rig.program(0, 0x2800_0000, 5)
    rig.control(ENABLE)
    rig.mask(0, 0)
    rig.control(ENABLE)
    assert len(rig.lines[0].programmed) == 1


def test_disabling_shuts_every_line(rig):
    rig.program(0, 0x2800_0000, 5)
    rig.control(ENABLE)
    rig.control(0)
    assert not rig.lines[0].is_open
    assert rig.msix.signal(0) is False


def test_vector_that_does_not_exist_is_counted(rig):
    rig.control(ENABLE)
    assert rig.msix.signal(3) is True
    assert rig.msix.signal(-1) is True
    assert rig.msix.line(3) is None
    assert rig.msix.line(2) is rig.lines[2]
    assert rig.msix.odd == 2


def test_table_beyond_the_last_vector_reads_zero_and_takes_nothing(rig):
    rig.write(3 * 16, 4, 0xFFFF_FFFF)
    assert rig.read(3 * 16, 4) == 0
    assert rig.msix.table.odd == 2


def test_pending_bits_cannot_be_written(rig):
    rig.control(ENABLE)
    rig.msix.signal(0)
    rig.write(PENDING, 8, 0)
    assert rig.read(PENDING, 8) == 1


def test_pending_bits_reach_into_a_second_word():
    rig = Rig(vectors=MAX_VECTORS)
    rig.control(ENABLE)
    for vector in (0, 63, 64, 127):
        rig.msix.signal(vector)
    assert rig.read(PENDING, 8) == rig.read(PENDING + 8, 8) == 1 << 63 | 1
    assert rig.read(PENDING + 12, 4) == 1 << 31


def test_wire_is_silent_while_msix_is_enabled(rig):
    rig.device.set_intx(True)
    rig.control(ENABLE)
    assert rig.pci.wires[1].level is False
    rig.control(0)
    assert rig.pci.wires[1].level is True


def test_reset_masks_everything_and_forgets_what_was_pending(rig):
    rig.program(0, 0x2800_0000, 5)
    rig.control(ENABLE)
    rig.msix.signal(1)
    rig.device.reset()
    assert not any(line.is_open or line.waiting for line in rig.lines)
    assert rig.msix.signal(0) is False


def test_state_carries_masks_and_pending_bits_over(rig):
    rig.program(0, 0x2800_0000, 5)
    rig.program(1, 0x2800_0000, 6, masked=1)
    rig.control(ENABLE)
    rig.msix.signal(1)
    other = Rig()
    other.program(2, 0x2800_0000, 9)
    other.control(ENABLE)
    other.device.load_state(rig.device.state())
    assert [line.is_open for line in other.lines] == [True, False, False]
    other.device.settle()
    assert other.read(PENDING, 8) == 0b010
    other.mask(1, 0)
    assert other.lines[1].delivered == [(0x2800_0000, 6)]
    assert other.lines[2].delivered == []
