# SPDX-License-Identifier: Apache-2.0
"""A guest that writes whatever it likes into PCI functions, and what must hold after every step."""

from __future__ import annotations

from fakes.lines import RecordingMsiLines
from fakes.pci import BARS, COMMAND, ECAM, HIGH, IDENTITY, LOW, WINDOWS, PciBus, Probe
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pyvmm.devices.pci.bar import IO, MEMORY_32, MEMORY_64, Bar
from pyvmm.devices.pci.function import PciFunction
from pyvmm.devices.pci.msi import Msi
from pyvmm.devices.pci.msix import Msix

PAGE = 0x1000
RAM = 0x8000_0000
PLACES = [0, 0x10, 0xFFF0, ECAM, LOW, LOW + PAGE, LOW + 2 * PAGE, LOW + 4 * PAGE, 0x7FFF_F000, RAM, HIGH]
VECTORS = 5
INTX_DISABLE = 1 << 10

numbers = st.integers(0, 2)
widths = st.sampled_from([1, 2, 4, 8])
values = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from(PLACES), st.just(2**64 - 1))
interesting = st.sampled_from([COMMAND, 0x10, 0x14, 0x18, 0x1C, 0x40, 0x42, 0x44, 0x48, 0x4C])
offsets = st.one_of(st.integers(0, PAGE - 1), interesting)


class Guest(RuleBasedStateMachine):
    """Three functions that share wires one by one with nobody, and a stretch of RAM that is not theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = RecordingMsiLines()
        self.msix = Msix(VECTORS, self.lines, bar=4)
        self.message = RecordingMsiLines()
        self.msi = Msi(self.message)
        self.functions = [self.network(), self.disk(), self.bare()]
        self.pci = PciBus(*self.functions)
        self.ram = Probe(0xAA)
        self.pci.bus.map(RAM, PAGE, self.ram, name="ram")
        self.pending = [False] * 3

    def network(self):
        function = PciFunction("network", IDENTITY)
        function.add_bar(Bar(0, 4 * PAGE, Probe(1), kind=MEMORY_64))
        function.add_bar(Bar(2, 16, Probe(2), kind=IO))
        function.add_bar(self.msix.bar)
        function.add_capability(self.msix)
        return function

    def disk(self):
        function = PciFunction("disk", IDENTITY)
        function.add_bar(Bar(0, PAGE, Probe(3)))
        function.add_bar(Bar(1, 2 * PAGE, Probe(4), kind=MEMORY_64, prefetchable=True))
        function.add_capability(self.msi)
        return function

    def bare(self):
        function = PciFunction("bare", IDENTITY)
        function.add_bar(Bar(0, PAGE, Probe(5), kind=MEMORY_32))
        return function

    def base(self, number):
        return ECAM + (number + 1 << 15)

    @rule(number=numbers, offset=offsets, width=widths, value=values)
    def write(self, number, offset, width, value):
        self.pci.bus.write(self.base(number) + offset, width, value & (1 << 8 * width) - 1)

    @rule(number=numbers, offset=offsets, width=widths)
    def read(self, number, offset, width):
        assert 0 <= self.pci.bus.read(self.base(number) + offset, width) < 1 << 8 * width

    @rule(number=numbers, index=st.integers(0, 5), place=st.sampled_from(PLACES))
    def place(self, number, index, place):
        self.pci.bus.write(self.base(number) + BARS + 4 * index, 4, place & 0xFFFF_FFFF)
        if index < 5 and place == HIGH:
            self.pci.bus.write(self.base(number) + BARS + 4 * index + 4, 4, place >> 32)

    @rule(number=numbers, command=st.sampled_from([0, 1, 2, 3, 7, 0x402, 0x403]))
    def command(self, number, command):
        self.pci.bus.write(self.base(number) + COMMAND, 2, command)

    @rule(control=st.sampled_from([0, 0x4000, 0x8000, 0xC000]))
    def control_msix(self, control):
        self.pci.bus.write(self.base(0) + 0x42, 2, control)

    @rule(entry=st.integers(0, VECTORS), word=st.integers(0, 3), width=widths, value=values)
    def write_table(self, entry, word, width, value):
        where = self.msix.bar.address
        if where is not None:
            self.pci.bus.write(where + 16 * entry + 4 * word, width, value & (1 << 8 * width) - 1)

    @rule(offset=st.integers(0, PAGE - 8), width=widths)
    def read_table(self, offset, width):
        with self.functions[0].lock:
            assert 0 <= self.msix.table.read(offset, width) < 1 << 8 * width

    @rule(vector=st.integers(-1, VECTORS))
    def signal(self, vector):
        with self.functions[0].lock:
            assert self.msix.signal(vector) is self.msix.replaces_intx

    @rule(number=numbers, level=st.booleans())
    def interrupt(self, number, level):
        self.pending[number] = level
        with self.functions[number].lock:
            self.functions[number].set_intx(level)

    @rule(number=numbers)
    def reset(self, number):
        with self.functions[number].lock:
            self.functions[number].reset()
        self.functions[number].settle()
        self.pending[number] = False

    @rule(number=numbers)
    def reload(self, number):
        function = self.functions[number]
        with function.lock:
            function.load_state(function.state())
        function.settle()

    def wanted(self, function, bar):
        """Where a naive reading of the registers puts a BAR."""
        header = function.header
        if not header.COMMAND & (1 if bar.kind == IO else 2):
            return None
        low, high = header.BASE_ADDRESS[bar.index], 0
        if bar.kind == MEMORY_64:
            high = header.BASE_ADDRESS[bar.index + 1]
        address = (high << 32 | low) // bar.size * bar.size
        for window in WINDOWS:
            inside = window.base <= address and address + bar.size <= window.base + window.size
            if inside and (window.kind == IO) == (bar.kind == IO):
                return window.cpu_base + address - window.base
        return None

    @invariant()
    def bars_are_where_the_registers_say_or_another_bar_is_there(self):
        mapped = self.pci.mapped()
        taken = [
            (bar.address, bar.address + bar.size) for f in self.functions for bar in f.bars if bar.address
        ]
        for function in self.functions:
            for bar in function.bars:
                wanted = self.wanted(function, bar)
                assert mapped.get(f"{function.name}.bar{bar.index}") == bar.address
                if bar.address != wanted:
                    assert bar.address is None
                    assert any(low < wanted + bar.size and wanted < high for low, high in taken)
        assert len(mapped) == len(taken) + 1

    @invariant()
    def wires_follow_what_is_pending(self):
        for number, function in enumerate(self.functions):
            disabled = function.header.COMMAND & INTX_DISABLE
            messages = any(capability.replaces_intx for capability in function.capabilities)
            assert function.header.interrupt is self.pending[number]
            assert self.pci.wires[number + 1].level is (
                self.pending[number] and not disabled and not messages
            )

    @invariant()
    def vectors_are_open_when_nothing_masks_them_and_carry_the_message_of_the_table(self):
        table, control = self.msix.table, self.msix.MESSAGE_CONTROL
        for vector, line in enumerate(self.lines.made):
            masked = control & 0xC000 != 0x8000 or table.VECTOR_CONTROL[vector] & 1
            assert line.is_open is not bool(masked)
            if line.is_open:
                address = table.UPPER_ADDRESS[vector] << 32 | table.ADDRESS[vector]
                assert line.message == (address, table.DATA[vector])
                assert not line.waiting

    @invariant()
    def msi_carries_the_message_of_its_capability(self):
        (line,) = self.message.made
        assert line.is_open is bool(self.msi.MESSAGE_CONTROL & 1)
        if line.is_open:
            address = self.msi.MESSAGE_UPPER_ADDRESS << 32 | self.msi.MESSAGE_ADDRESS
            assert line.message == (address, self.msi.MESSAGE_DATA)

    @invariant()
    def what_is_not_theirs_is_untouched(self):
        assert self.ram.writes == []
        assert self.pci.bus.read(RAM, 1) == 0xAA
        assert all(self.pci.bus.read(self.base(number), 4) == 0x1041_1AF4 for number in range(3))
        assert not any(function.lock.locked() for function in self.functions)


TestGuest = Guest.TestCase
