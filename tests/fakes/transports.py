# SPDX-License-Identifier: Apache-2.0
"""A virtio device behind a transport on a bus, driven through its registers as a driver's code does."""

from __future__ import annotations

from fakes.driver import FakeDriver
from fakes.lines import RecordingLine, RecordingMsiLines
from fakes.pci import ECAM, HIGH, LOW, PciBus
from fakes.virtio import RAM, FakeDoorbell, make_services

from pyvmm.devices.virtio import bits
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.devices.virtio.pci import NO_VECTOR, VirtioPci
from pyvmm.memory import GuestMemory
from pyvmm.mmio.bus import Bus
from pyvmm.ring import Ring

MMIO_BASE = 0x1002_0000
MSIX_BAR = LOW + 0x10_0000


class _Transport:
    """What both have in common. ``write(offset, size, value)`` and ``read`` go through the bus."""

    def __init__(self, device, *, packed=False, size=16, services=None, memory=None) -> None:
        """``memory`` is the caller's; without it there is one of its own."""
        self.device = device
        self.services = services or make_services()
        self.loop = self.services.loop
        self.workers = self.services.workers
        self._owned = None if memory else GuestMemory()
        if self._owned is not None:
            self._owned.add(RAM, 4 << 20)
        self.memory = memory or self._owned
        self.doorbells: list[FakeDoorbell] = []
        self._make()
        self.drivers = [
            FakeDriver(self.memory, packed=packed, size=min(size, largest), base=RAM + 0x4_0000 * index)
            for index, largest in enumerate(device.queue_sizes)
        ]

    def _doorbell(self, size: int, value: int | None) -> FakeDoorbell:
        self.doorbells.append(FakeDoorbell(size, value))
        return self.doorbells[-1]

    def __enter__(self):
        return self

    def __exit__(self, *exc: object) -> None:
        self.workers.held = False
        self.workers.release()
        self.transport.close()
        self._close()
        self.drivers = []
        if self._owned is not None:
            self._owned.close()

    def _close(self) -> None:
        pass

    @property
    def core(self):
        return self.transport.core

    def start(self) -> None:
        """Reset, negotiate everything on offer that the fake drivers can do, set the queues up, go."""
        self.set_status(0)
        self.set_status(bits.ACKNOWLEDGE | bits.DRIVER)
        setup = self.drivers[0].setup
        wanted = self.device.offered() | bits.feature_set(bits.F_VERSION_1)
        wanted |= setup.indirect << bits.F_INDIRECT_DESC | setup.packed << bits.F_RING_PACKED
        self.set_features(wanted)
        self.set_status(bits.ACKNOWLEDGE | bits.DRIVER | bits.FEATURES_OK)
        assert self.status() & bits.FEATURES_OK
        for index, driver in enumerate(self.drivers):
            self.set_up_queue(index, driver.setup)
        self.set_status(bits.ACKNOWLEDGE | bits.DRIVER | bits.FEATURES_OK | bits.DRIVER_OK)
        self.loop.run()


class OnMmio(_Transport):
    """Behind virtio-mmio. ``line`` is its wire, which pulses."""

    def _make(self) -> None:
        self.bus = Bus()
        self.line = RecordingLine(8)
        self._pulses_before = 0  # the last acknowledgement
        self.transport = VirtioMmio(
            self.device, self.line, self.memory, Ring(), self.services, self._doorbell
        )
        self.mapping = self.bus.map(MMIO_BASE, VirtioMmio.SIZE, self.transport, name="echo0")
        self.transport.place(MMIO_BASE)

    def read(self, offset: int, size: int = 4) -> int:
        return self.bus.read(MMIO_BASE + offset, size)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.bus.write(MMIO_BASE + offset, size, value)

    def status(self) -> int:
        return self.read(0x70)

    def set_status(self, value: int) -> None:
        self.write(0x70, value)

    def features(self) -> int:
        words = []
        for word in (0, 1):
            self.write(0x14, word)
            words.append(self.read(0x10))
        return words[0] | words[1] << 32

    def set_features(self, features: int) -> None:
        for word in (0, 1):
            self.write(0x24, word)
            self.write(0x20, features >> 32 * word & 0xFFFF_FFFF)

    def set_up_queue(self, index: int, setup) -> None:
        self.write(0x30, index)
        self.write(0x38, setup.size)
        for offset, address in ((0x80, setup.desc), (0x90, setup.driver), (0xA0, setup.device)):
            self.write(offset, address & 0xFFFF_FFFF)
            self.write(offset + 4, address >> 32)
        self.write(0x44, 1)

    def reset_queue(self, index: int) -> None:
        self.write(0x30, index)
        self.write(0xC0, 1)

    def kick(self, index: int = 0) -> None:
        self.write(0x50, index)
        self.loop.run()

    def config(self, offset: int, size: int) -> int:
        return self.read(0x100 + offset, size)

    def interrupted(self) -> bool:
        return self.line.pulses > self._pulses_before and self.read(0x60) != 0

    def acknowledge(self) -> int:
        self._pulses_before = self.line.pulses
        status = self.read(0x60)
        self.write(0x64, status)
        return status


class OnPci(_Transport):
    """Behind virtio-pci, its BARs placed. ``msi`` says whether the machine has messages."""

    def __init__(self, device, *, msi=True, **more) -> None:
        self.lines = RecordingMsiLines() if msi else None
        super().__init__(device, **more)
        config = self.pci.at("00:01.0")
        config.write(0x10, 4, HIGH & 0xFFFF_FFFF)
        config.write(0x14, 4, HIGH >> 32)
        config.write(0x18, 4, MSIX_BAR)
        config.write(0x04, 2, 0x6)

    def _make(self) -> None:
        self.transport = VirtioPci(
            self.device, self.memory, Ring(), self.services, self._doorbell, self.lines
        )
        self.pci = PciBus(self.transport.function)
        self.bus = self.pci.bus

    def _close(self) -> None:
        self.pci.host.close()

    def read(self, offset: int, size: int = 4) -> int:
        return self.bus.read(HIGH + offset, size)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.bus.write(HIGH + offset, size, value)

    def capabilities(self) -> dict[int, tuple[int, int]]:
        """(offset in configuration space, length) of the virtio structures by cfg_type, and MSI-X as -1."""
        found = {}
        config = self.pci.at("00:01.0")
        at = config.read(0x34, 1)
        while at:
            kind = config.read(at, 1)
            found[-1 if kind == 0x11 else config.read(at + 3, 1)] = (
                config.read(at + 8, 4),
                config.read(at + 12, 4),
            )
            at = config.read(at + 1, 1)
        return found

    def enable_msix(self) -> None:
        """Vector i sends data 0x40 + i; queue i uses vector i + 1, configuration changes vector 0."""
        for vector in range(len(self.lines.made)):
            entry = MSIX_BAR + 16 * vector
            self.bus.write(entry, 4, 0x0800_0000)
            self.bus.write(entry + 4, 4, 0)
            self.bus.write(entry + 8, 4, 0x40 + vector)
            self.bus.write(entry + 12, 4, 0)
        self.bus.write(self.msix_control(), 2, 0x8000)
        self.write(0x10, 0, 2)
        for index in range(len(self.drivers)):
            self.write(0x16, index, 2)
            self.write(0x1A, index + 1, 2)

    def msix_control(self) -> int:
        """Where MSI-X's message control is, on the bus."""
        base = ECAM + (1 << 15)
        at = self.bus.read(base + 0x34, 1)
        while self.bus.read(base + at, 1) != 0x11:
            at = self.bus.read(base + at + 1, 1)
        return base + at + 2

    def status(self) -> int:
        return self.read(0x14, 1)

    def set_status(self, value: int) -> None:
        self.write(0x14, value, 1)

    def features(self) -> int:
        words = []
        for word in (0, 1):
            self.write(0x00, word)
            words.append(self.read(0x04))
        return words[0] | words[1] << 32

    def set_features(self, features: int) -> None:
        for word in (0, 1):
            self.write(0x08, word)
            self.write(0x0C, features >> 32 * word & 0xFFFF_FFFF)

    def set_up_queue(self, index: int, setup) -> None:
        self.write(0x16, index, 2)
        self.write(0x18, setup.size, 2)
        for offset, address in ((0x20, setup.desc), (0x28, setup.driver), (0x30, setup.device)):
            self.write(offset, address, 8)
        self.write(0x1C, 1, 2)

    def reset_queue(self, index: int) -> None:
        self.write(0x16, index, 2)
        self.write(0x3A, 1, 2)

    def kick(self, index: int = 0) -> None:
        self.write(0x16, index, 2)
        self.write(0x3000 + 4 * self.read(0x1E, 2), index, 2)
        self.loop.run()

    def config(self, offset: int, size: int) -> int:
        return self.read(0x2000 + offset, size)

    def interrupted(self) -> bool:
        return any(wire.level for wire in self.pci.wires)

    def acknowledge(self) -> int:
        return self.read(0x1000, 1)


__all__ = ["HIGH", "MMIO_BASE", "MSIX_BAR", "NO_VECTOR", "OnMmio", "OnPci"]
