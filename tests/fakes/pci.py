# SPDX-License-Identifier: Apache-2.0
"""A PCI bus with nothing else around it, and what a driver does with it."""

from __future__ import annotations

import threading

from fakes.lines import RecordingLine

from pyvmm.devices.pci.bar import IO, MEMORY_32, MEMORY_64, Bar, Window
from pyvmm.devices.pci.function import PciFunction
from pyvmm.devices.pci.header import Identity
from pyvmm.devices.pci.host import ECAM_SIZE, PciHost
from pyvmm.mmio.bus import Bus

ECAM = 0x3000_0000
IO_BASE, IO_SIZE = 0x3F00_0000, 0x1_0000
LOW, LOW_SIZE = 0x4000_0000, 0x4000_0000
HIGH, HIGH_SIZE = 0x4_0000_0000, 0x4_0000_0000
WINDOWS = (
    Window(IO, 0, IO_BASE, IO_SIZE),
    Window(MEMORY_32, LOW, LOW, LOW_SIZE),
    Window(MEMORY_64, HIGH, HIGH, HIGH_SIZE),
)
IDENTITY = Identity(0x1AF4, 0x1041, 0x02_00_00, revision=1, subsystem_vendor=0x1AF4, subsystem=0x0040)

COMMAND, STATUS, BARS, CAPABILITIES, PIN = 0x04, 0x06, 0x10, 0x34, 0x3D
IO_SPACE, MEMORY_SPACE, BUS_MASTER, INTX_DISABLE = 1, 2, 4, 0x400


class Probe:
    """A region that answers every read with ``value`` and keeps ``writes``."""

    def __init__(self, value: int = 0) -> None:
        self.lock = threading.Lock()
        self.value = value
        self.writes: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return self.value & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int):
        self.writes.append((offset, size, value))

    def decode(self, offset: int, size: int, is_write: bool, value: int) -> tuple[str, str]:
        return "probe", ""

    def reset(self) -> None:
        self.writes.clear()

    def state(self):
        return {"value": self.value}

    def load_state(self, state) -> None:
        self.value = state["value"]


def function(*bars: Bar, name: str = "probe", pin: int = 1) -> PciFunction:
    made = PciFunction(name, IDENTITY, pin=pin)
    for bar in bars:
        made.add_bar(bar)
    return made


class PciBus:
    """A bus with a host bridge, and the guest's view of its configuration space."""

    def __init__(self, *functions: PciFunction) -> None:
        self.bus = Bus()
        self.wires = [RecordingLine(number) for number in (3, 4, 5, 6)]
        self.host = PciHost(self.bus, self.wires, WINDOWS)
        self.bus.map(ECAM, ECAM_SIZE, self.host, name="pci")
        self.addresses = [self.host.add(function) for function in functions]

    def at(self, address: str) -> ConfigSpace:
        """Configuration space of ``00:SLOT.FUNCTION``."""
        slot, number = address.removeprefix("00:").split(".")
        return ConfigSpace(self.bus, ECAM + (int(slot, 16) << 15 | int(number) << 12))

    def mapped(self) -> dict[str, int]:
        """Where the BARs are now, by name."""
        return {name: where.base for where, name in self.bus.describe() if name != "pci"}


class ConfigSpace:
    """One function's configuration space, through the bus."""

    def __init__(self, bus: Bus, base: int) -> None:
        self._bus = bus
        self._base = base

    def read(self, offset: int, size: int) -> int:
        return self._bus.read(self._base + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._bus.write(self._base + offset, size, value)

    def command(self, value: int) -> None:
        self.write(COMMAND, 2, value)

    def place(self, index: int, address: int) -> None:
        """Write a BAR of 32 bits."""
        self.write(BARS + 4 * index, 4, address)

    def place_wide(self, index: int, address: int) -> None:
        """Write a BAR of 64 bits, the low half first."""
        self.place(index, address & 0xFFFF_FFFF)
        self.place(index + 1, address >> 32)

    def sized(self, index: int) -> int:
        """What BAR ``index`` reads after all ones were written, as Linux sizes it: not decoded meanwhile."""
        command, before = self.read(COMMAND, 2), self.read(BARS + 4 * index, 4)
        self.command(command & ~(IO_SPACE | MEMORY_SPACE))
        self.place(index, 0xFFFF_FFFF)
        mask = self.read(BARS + 4 * index, 4)
        self.place(index, before)
        self.command(command)
        return mask

    def capabilities(self) -> list[tuple[int, int]]:
        """(id, offset) along the list. Fails when it does not end."""
        found: list[tuple[int, int]] = []
        offset = self.read(CAPABILITIES, 1)
        while offset:
            assert len(found) < 48, "the list has no end"
            found.append((self.read(offset, 1), offset))
            offset = self.read(offset + 1, 1)
        return found
