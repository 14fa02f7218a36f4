# SPDX-License-Identifier: Apache-2.0
"""QEMU's educational device, register by register, as its driver sees it."""

import math

import pytest
from fakes.lines import RecordingMsiLines
from fakes.loop import FakeLoop, FakeWorkers
from fakes.pci import BUS_MASTER, LOW, MEMORY_SPACE, PciBus

from pyvmm.devices.edu import Edu, factorial
from pyvmm.memory import GuestMemory

RAM, RAM_SIZE = 0x8000_0000, 0x10_0000
BUFFER, BUFFER_SIZE = 0x40000, 0x1000

FACTORIAL, STATUS, INTERRUPTS, RAISE, ACKNOWLEDGE = 0x08, 0x20, 0x24, 0x60, 0x64
SOURCE, DESTINATION, COUNT, DMA = 0x80, 0x88, 0x90, 0x98
COMPUTING, INTERRUPT_WHEN_DONE = 0x01, 0x80
RUN, TO_RAM, INTERRUPT_AT_END = 1, 2, 4
MSI_CONTROL, MSI_ADDRESS, MSI_DATA = 0x42, 0x44, 0x4C


class Rig:
    def __init__(self, memory, *, msi=True, **options):
        self.memory = memory
        self.loop = FakeLoop()
        self.workers = FakeWorkers()
        self.workers.held = True
        self.lines = RecordingMsiLines()
        self.edu = Edu(memory, self.loop, self.workers, self.lines if msi else None, **options)
        self.pci = PciBus(self.edu.function)
        self.config = self.pci.at("00:01.0")
        self.config.place(0, LOW)
        self.config.command(MEMORY_SPACE | BUS_MASTER)
        self.wire = self.pci.wires[1]

    def read(self, offset, size=4):
        return self.pci.bus.read(LOW + offset, size)

    def write(self, offset, value, size=4):
        self.pci.bus.write(LOW + offset, size, value)

    def enable_msi(self):
        self.config.write(MSI_ADDRESS, 4, 0x2800_0000)
        self.config.write(MSI_DATA, 2, 5)
        self.config.write(MSI_CONTROL, 2, 1)

    @property
    def messages(self):
        return len(self.lines.made[0].delivered)

    def start_dma(self, source, destination, count, command):
        self.write(SOURCE, source, 8)
        self.write(DESTINATION, destination, 8)
        self.write(COUNT, count, 8)
        self.write(DMA, command | RUN, 8)

    def dma(self, source, destination, count, command=0):
        self.start_dma(source, destination, count, command)
        self.loop.advance(0.1)

    def fill_buffer(self, data):
        self.memory.write(RAM, data)
        self.dma(RAM, BUFFER, len(data))


@pytest.fixture
def memory():
    with GuestMemory() as memory:
        memory.add(RAM, RAM_SIZE)
        yield memory


@pytest.fixture
def rig(memory):
    return Rig(memory)


def test_it_is_the_device_its_drivers_look_for(rig):
    assert rig.config.read(0, 4) == 0x11E8_1234
    assert rig.config.read(8, 4) == 0x00FF_0010
    assert rig.config.read(0x3D, 1) == 1
    assert rig.config.capabilities() == [(0x05, 0x40)]
    assert rig.config.sized(0) == 0xFFF0_0000


def test_without_messages_there_is_no_capability(memory):
    assert Rig(memory, msi=False).config.capabilities() == []


def test_identification(rig):
    assert rig.read(0) == 0x0100_00ED
    rig.write(0, 0)
    assert rig.read(0) == 0x0100_00ED


def test_liveness_reads_the_inverse_of_what_was_written(rig):
    rig.write(4, 0x1234_5678)
    assert rig.read(4) == 0xEDCB_A987


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0x00, 1), (0x00, 2), (0x00, 8), (0x20, 8), (0x02, 2), (0x10, 4), (0x60, 4), (0x64, 4), (0x80, 1),
     (0x80, 2), (0x84, 4), (0xA0, 8), (0x40000, 4), (0xFFFFC, 4)],
)  # fmt: skip
def test_what_is_no_register_or_not_of_its_size_reads_all_ones(rig, offset, size):
    assert rig.read(offset, size) == (1 << 8 * size) - 1


@pytest.mark.parametrize(("offset", "size"), [(0x04, 1), (0x04, 2), (0x04, 8), (0x84, 4), (0x80, 2)])
def test_write_of_a_wrong_size_is_ignored(rig, offset, size):
    before = rig.edu.state()
    rig.write(offset, 0, size)
    assert rig.edu.state() == before


# Factorial


@pytest.mark.parametrize("number", [0, 1, 2, 5, 12, 13, 20, 31, 32, 33, 34, 35, 0x8000_0000, 0xFFFF_FFFF])
def test_factorial_is_modulo_32_bits(rig, number):
    rig.write(FACTORIAL, number)
    assert rig.read(STATUS) == COMPUTING
    assert rig.read(FACTORIAL) == number
    rig.workers.release()
    assert rig.read(STATUS) == 0
    assert rig.read(FACTORIAL) == (math.factorial(number) % 2**32 if number < 100 else 0)


def test_factorial_is_zero_exactly_from_34_on():
    assert factorial(33) == math.factorial(33) % 2**32 != 0
    assert math.factorial(34) % 2**32 == factorial(34) == 0


def test_factorial_written_while_computing_is_ignored(rig):
    rig.write(FACTORIAL, 5)
    rig.write(FACTORIAL, 6)
    rig.workers.release()
    assert rig.read(FACTORIAL) == 120


def test_only_the_interrupt_bit_of_status_can_be_written(rig):
    rig.write(STATUS, 0xFFFF_FFFF)
    assert rig.read(STATUS) == INTERRUPT_WHEN_DONE
    rig.write(STATUS, 0)
    assert rig.read(STATUS) == 0


def test_status_written_while_computing_keeps_the_computing_bit(rig):
    rig.write(FACTORIAL, 5)
    rig.write(STATUS, INTERRUPT_WHEN_DONE)
    assert rig.read(STATUS) == INTERRUPT_WHEN_DONE | COMPUTING
    rig.workers.release()
    assert rig.read(STATUS) == INTERRUPT_WHEN_DONE


def test_factorial_interrupts_when_done_if_asked(rig):
    rig.write(STATUS, INTERRUPT_WHEN_DONE)
    rig.write(FACTORIAL, 5)
    assert rig.wire.level is False
    rig.workers.release()
    assert rig.read(INTERRUPTS) == 1
    assert rig.wire.level is True


def test_factorial_does_not_interrupt_unasked(rig):
    rig.write(FACTORIAL, 5)
    rig.workers.release()
    assert rig.read(INTERRUPTS) == 0
    assert rig.wire.changes == []


def test_factorial_begun_before_a_reset_ends_nowhere(rig):
    rig.write(FACTORIAL, 5)
    with rig.edu.lock:
        rig.edu.function.reset()
    rig.workers.release()
    assert rig.edu.FACTORIAL == 0


# Interrupts


def test_raised_bits_accumulate_and_hold_the_wire_until_all_are_acknowledged(rig):
    rig.write(RAISE, 0x10)
    rig.write(RAISE, 0x02)
    assert rig.read(INTERRUPTS) == 0x12
    rig.write(ACKNOWLEDGE, 0x10)
    assert (rig.read(INTERRUPTS), rig.wire.level) == (0x02, True)
    rig.write(ACKNOWLEDGE, 0xFFFF_FFFF)
    assert (rig.read(INTERRUPTS), rig.wire.level) == (0, False)
    assert rig.wire.changes == [True, False]


def test_raising_nothing_raises_nothing(rig):
    rig.write(RAISE, 0)
    assert rig.wire.changes == []


def test_every_raise_sends_a_message_even_of_a_bit_already_set(rig):
    rig.enable_msi()
    for _ in range(3):
        rig.write(RAISE, 1)
    assert rig.lines.made[0].delivered == [(0x2800_0000, 5)] * 3
    assert rig.wire.changes == []


def test_raising_nothing_sends_a_message_while_something_is_raised(rig):
    rig.enable_msi()
    rig.write(RAISE, 0)
    assert rig.messages == 0
    rig.write(RAISE, 1)
    rig.write(RAISE, 0)
    assert rig.messages == 2


def test_acknowledging_a_part_sends_no_message(rig):
    rig.enable_msi()
    rig.write(RAISE, 3)
    rig.write(ACKNOWLEDGE, 1)
    assert rig.read(INTERRUPTS) == 2
    assert rig.messages == 1


def test_wire_raised_before_messages_were_enabled_goes_low_and_stays_so(rig):
    rig.write(RAISE, 1)
    rig.enable_msi()
    assert rig.wire.level is False
    rig.write(ACKNOWLEDGE, 1)
    rig.config.write(MSI_CONTROL, 2, 0)
    assert rig.wire.level is False


# DMA


def test_dma_moves_memory_into_the_buffer_and_back(rig, memory):
    rig.fill_buffer(b"hello, world")
    rig.dma(BUFFER + 7, RAM + 0x2001, 5, TO_RAM)
    assert memory.read(RAM + 0x2000, 7) == b"\0world\0"
    assert rig.edu.refused == 0


def test_dma_moves_the_whole_buffer(rig, memory):
    data = bytes(range(256)) * 16
    rig.fill_buffer(data)
    rig.dma(BUFFER, RAM + 0x8000, BUFFER_SIZE, TO_RAM)
    assert memory.read(RAM + 0x8000, BUFFER_SIZE) == data


def test_dma_runs_for_a_tenth_of_a_second(rig, memory):
    memory.write(RAM, b"data")
    rig.start_dma(RAM, BUFFER, 4, 0)
    rig.loop.advance(0.09)
    assert rig.read(DMA, 8) == RUN
    assert rig.edu._buffer[:4] == bytes(4)
    rig.loop.advance(0.011)
    assert rig.read(DMA, 8) == 0
    assert rig.edu._buffer[:4] == b"data"


def test_dma_registers_do_not_change_while_it_runs(rig):
    rig.start_dma(RAM, BUFFER, 4, 0)
    for offset in (SOURCE, DESTINATION, COUNT):
        rig.write(offset, 0x77, 8)
    rig.write(DMA, RUN | TO_RAM | INTERRUPT_AT_END, 8)
    assert [rig.read(offset, 8) for offset in (SOURCE, DESTINATION, COUNT, DMA)] == [RAM, BUFFER, 4, RUN]
    rig.loop.advance(0.1)
    rig.write(SOURCE, 0x77, 8)
    assert rig.read(SOURCE, 8) == 0x77


def test_dma_command_without_run_is_ignored(rig):
    rig.write(DMA, TO_RAM | INTERRUPT_AT_END)
    assert rig.read(DMA) == 0
    assert rig.loop.timers == []


def test_dma_registers_take_four_bytes_as_all_of_them(rig):
    rig.write(SOURCE, 0x1234_5678_9ABC_DEF0, 8)
    assert rig.read(SOURCE, 8) == 0x1234_5678_9ABC_DEF0
    assert rig.read(SOURCE, 4) == 0x9ABC_DEF0
    rig.write(SOURCE, 0x8000_0000, 4)
    assert rig.read(SOURCE, 8) == 0x8000_0000


@pytest.mark.parametrize(("command", "interrupts"), [(INTERRUPT_AT_END, 0x100), (0, 0)])
def test_dma_interrupts_at_its_end_if_asked(rig, command, interrupts):
    rig.dma(RAM, BUFFER, 4, command)
    assert rig.read(INTERRUPTS) == interrupts
    assert rig.wire.level is bool(interrupts)


@pytest.mark.parametrize(
    ("inside", "count"),
    [(BUFFER - 1, 4), (BUFFER + BUFFER_SIZE, 1), (BUFFER + BUFFER_SIZE - 3, 4), (BUFFER, BUFFER_SIZE + 1),
     (0, 4), (BUFFER, 2**64 - 1), (2**64 - 4, 8), (BUFFER + 1, 2**64 - 1)],
)  # fmt: skip
@pytest.mark.parametrize("to_ram", [True, False])
def test_dma_outside_of_the_buffer_moves_nothing_and_ends_as_usual(rig, memory, inside, count, to_ram):
    rig.fill_buffer(b"kept")
    memory.write(RAM + 0x4000, b"kept too")
    ends = (inside, RAM + 0x4000) if to_ram else (RAM + 0x4000, inside)
    rig.dma(*ends, count, INTERRUPT_AT_END | (TO_RAM if to_ram else 0))
    assert rig.edu.refused == 1
    assert memory.read(RAM + 0x4000, 8) == b"kept too"
    assert rig.edu._buffer[:8] == b"kept\0\0\0\0"
    assert rig.read(DMA) & RUN == 0
    assert rig.read(INTERRUPTS) == 0x100


@pytest.mark.parametrize("address", [0, RAM - 4, RAM + RAM_SIZE - 4, RAM + RAM_SIZE, 2**64 - 4, LOW])
@pytest.mark.parametrize("to_ram", [True, False])
def test_dma_outside_of_memory_moves_nothing(rig, memory, address, to_ram):
    rig.fill_buffer(b"kept")
    rig.dma(*((BUFFER, address) if to_ram else (address, BUFFER)), 8, TO_RAM if to_ram else 0)
    assert rig.edu.refused == 1
    assert rig.edu._buffer[:8] == b"kept\0\0\0\0"
    assert memory.read(RAM + RAM_SIZE - 4, 4) == bytes(4)


@pytest.mark.parametrize("to_ram", [True, False])
def test_dma_without_bus_mastering_moves_nothing(rig, memory, to_ram):
    rig.fill_buffer(b"kept")
    memory.write(RAM + 0x4000, b"kept")
    rig.config.command(MEMORY_SPACE)
    rig.dma(*((BUFFER, RAM + 0x4000) if to_ram else (RAM + 0x5000, BUFFER)), 4, TO_RAM if to_ram else 0)
    assert rig.edu.refused == 1
    assert memory.read(RAM + 0x4000, 4) == rig.edu._buffer[:4] == b"kept"


def test_dma_mask_cuts_the_address_in_memory_only(memory):
    rig = Rig(memory, dma_mask=0xFFFF_FFFF)
    memory.write(RAM, b"data")
    rig.dma(RAM | 0x5_0000_0000, BUFFER, 4)
    assert rig.edu._buffer[:4] == b"data"
    rig.dma(BUFFER, RAM + 0x100 | 0x5_0000_0000, 4, TO_RAM)
    assert memory.read(RAM + 0x100, 4) == b"data"


def test_dma_with_the_mask_of_qemu_reaches_no_memory_here(memory):
    rig = Rig(memory, dma_mask=(1 << 28) - 1)
    rig.dma(RAM, BUFFER, 4)
    assert rig.edu.refused == 1


def test_dma_of_no_bytes_moves_nothing_and_ends(rig):
    rig.dma(RAM, BUFFER, 0, INTERRUPT_AT_END)
    assert rig.read(INTERRUPTS) == 0x100
    assert len(rig.edu._buffer) == BUFFER_SIZE


def test_dma_begun_before_a_reset_moves_nothing(rig, memory):
    memory.write(RAM, b"data")
    rig.start_dma(RAM, BUFFER, 4, INTERRUPT_AT_END)
    with rig.edu.lock:
        rig.edu.function.reset()
    rig.loop.advance(1)
    assert rig.edu._buffer == bytes(BUFFER_SIZE)
    assert rig.edu.INTERRUPT_STATUS == 0


def test_late_timer_of_an_abandoned_transfer_does_nothing(rig, memory):
    memory.write(RAM, b"data")
    rig.start_dma(RAM, BUFFER, 4, 0)
    late = rig.loop.timers[-1].callback
    rig.edu.close()
    late()
    assert rig.edu._buffer == bytes(BUFFER_SIZE)


def test_what_was_under_way_goes_on_where_the_state_is_loaded(rig, memory):
    memory.write(RAM, b"data")
    rig.write(FACTORIAL, 6)
    rig.start_dma(RAM, BUFFER, 4, INTERRUPT_AT_END)
    other = Rig(memory)
    with other.edu.lock:
        other.edu.function.load_state(rig.edu.function.state())
    other.edu.function.settle()
    other.workers.release()
    other.loop.advance(0.1)
    assert other.read(FACTORIAL) == 720
    assert other.read(INTERRUPTS) == 0x100
    assert other.edu._buffer[:4] == b"data"


def test_decode_names_a_wide_register_for_four_bytes(rig):
    assert rig.edu.decode(DMA, 4, True, 3) == ("DMA_COMMAND", "run=1 to_ram=1")
    assert rig.edu.decode(STATUS, 4, False, 0x81) == ("STATUS", "computing=1 interrupt_when_done=1")
