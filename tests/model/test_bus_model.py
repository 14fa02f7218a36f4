# SPDX-License-Identifier: Apache-2.0
"""The bus against a naive model: a dict from every single address to the device there."""

from __future__ import annotations

import threading

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyvmm.errors import BusError
from pyvmm.mmio.bus import Bus

SPACE = 64  # bytes of address space the model plays in, at either end of the real one
HIGH = 2**64 - SPACE

addresses = st.one_of(st.integers(0, SPACE - 1), st.integers(HIGH, 2**64 - 1))
sizes = st.integers(0, 24)
widths = st.sampled_from([1, 2, 4, 8])


class Probe:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.seen = None

    def read(self, offset, size):
        self.seen = ("r", offset, size)
        return id(self)

    def write(self, offset, size, value):
        self.seen = ("w", offset, size, value)


class BusMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.bus = Bus()
        self.cells: dict[int, tuple[Probe, int]] = {}  # address -> device, offset
        self.mappings = []
        self.lost = 0
        self.straddling = 0

    def fits(self, base, size, ignoring=None):
        if size <= 0 or base + size > 2**64:
            return False
        cells = (self.cells.get(address) for address in range(base, base + size))
        return all(cell is None or cell[0] is ignoring for cell in cells)

    def place(self, base, size, device):
        self.cells.update({base + offset: (device, offset) for offset in range(size)})

    def clear(self, device):
        self.cells = {address: cell for address, cell in self.cells.items() if cell[0] is not device}

    @rule(base=addresses, size=sizes)
    def map(self, base, size):
        device, allowed = Probe(), self.fits(base, size)
        try:
            mapping = self.bus.map(base, size, device, name="probe")
        except BusError:
            assert not allowed
            return
        assert allowed
        self.mappings.append(mapping)
        self.place(base, size, device)

    @precondition(lambda self: self.mappings)
    @rule(data=st.data())
    def unmap(self, data):
        mapping = data.draw(st.sampled_from(self.mappings))
        mapping.unmap()
        self.clear(mapping.device)

    @precondition(lambda self: self.mappings)
    @rule(data=st.data(), base=addresses)
    def move(self, data, base):
        mapping = data.draw(st.sampled_from(self.mappings))
        size, device = mapping.range.size, mapping.device
        on_bus = any(cell[0] is device for cell in self.cells.values())
        allowed = on_bus and self.fits(base, size, ignoring=device)
        try:
            mapping.move(base)
        except BusError:
            assert not allowed
            return
        assert allowed
        self.clear(device)
        self.place(base, size, device)

    def expected(self, address, size):
        """(device, offset) when the access is wholly inside one device, else None, counted."""
        cells = [self.cells.get(at) for at in range(address, address + size)]
        devices = {cell[0] if cell else None for cell in cells}
        if len(devices) == 1 and None not in devices:
            return cells[0]
        self.lost += 1
        self.straddling += len(devices) > 1
        return None

    @rule(address=addresses, size=widths)
    def read(self, address, size):
        cell = self.expected(address, size)
        assert self.bus.read(address, size) == (id(cell[0]) if cell else 0)
        assert cell is None or cell[0].seen == ("r", cell[1], size)

    @rule(address=addresses, size=widths, value=st.integers(0, 255))
    def write(self, address, size, value):
        cell = self.expected(address, size)
        if cell:
            cell[0].seen = None
        self.bus.write(address, size, value)
        assert cell is None or cell[0].seen == ("w", cell[1], size, value)

    @rule(address=addresses)
    def find(self, address):
        cell = self.cells.get(address)
        mapping = self.bus.find(address)
        assert (mapping.device if mapping else None) is (cell[0] if cell else None)

    @invariant()
    def counts_agree(self):
        assert (self.bus.unclaimed.total, self.bus.unclaimed.straddling) == (self.lost, self.straddling)

    @invariant()
    def table_is_sorted_and_complete(self):
        ranges = [where for where, _ in self.bus.describe()]
        assert sorted(ranges, key=lambda where: where.base) == ranges
        assert sum(where.size for where in ranges) == len(self.cells)


TestBus = BusMachine.TestCase
