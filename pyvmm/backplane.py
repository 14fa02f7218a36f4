# SPDX-License-Identifier: Apache-2.0
"""Where devices are plugged in: a PCI bus, or virtio-mmio slots, with their wires, messages and doorbells.

What a machine's device tree says of it can be known without any of that: see ``describe``.
"""

from __future__ import annotations

from itertools import count

from pyvmm import layout
from pyvmm.attempts import attempt_all
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.config import MachineConfig
    from pyvmm.devicelist import DeviceRequest
    from pyvmm.devices.base import Doorbells, IrqLine, MsiLine
    from pyvmm.devices.edu import Edu
    from pyvmm.devices.pci.capability import MsiLines
    from pyvmm.devices.pci.function import PciFunction
    from pyvmm.devices.pci.host import PciHost
    from pyvmm.devices.settings import Settings
    from pyvmm.devices.virtio.device import Services
    from pyvmm.devices.virtio.mmio import VirtioMmio
    from pyvmm.devices.virtio.pci import VirtioPci
    from pyvmm.devicetree import Tree
    from pyvmm.memory import GuestMemory
    from pyvmm.mmio.bus import Bus
    from pyvmm.ring import Ring


class Slots:
    """How many of which places a configuration takes: ``mmio`` slots, and whether there is a PCI bus."""

    __slots__ = ("mmio", "pci")

    def __init__(self, config: MachineConfig) -> None:
        virtio = sum(issubclass(request.model, VirtioDevice) for request in config.devices)
        console = config.console == "virtio"
        virtio += console
        on_pci = config.virtio_transport == "pci"
        self.mmio = 0 if on_pci else virtio
        self.pci = len(config.devices) + console - self.mmio > 0
        if self.mmio > layout.VIRTIO_SLOTS:
            raise ConfigError(
                f"There is room for {layout.VIRTIO_SLOTS} virtio-mmio devices, not {self.mmio}; "
                "use --virtio-transport pci."
            )


def describe(tree: Tree, slots: Slots, ram_end: int) -> None:
    """Add the PCI bus and the virtio-mmio slots to a device tree."""
    from pyvmm import devicetree

    if slots.pci:
        from pyvmm import pcitree

        pcitree.describe(tree, ram_end)
    for number in range(slots.mmio):
        from pyvmm.devices.virtio.mmio import VirtioMmio

        base, irq = _slot(number)
        tree.add(
            devicetree.Device(
                "virtio",
                base,
                layout.VIRTIO_SIZE,
                irq,
                VirtioMmio.describe,
                trigger=devicetree.EDGE_RISING,
            )
        )


def _slot(number: int) -> tuple[int, int]:
    """Address and source number of a virtio-mmio slot."""
    return layout.VIRTIO_BASE + number * layout.VIRTIO_SIZE, layout.VIRTIO_IRQ + number


class Backplane:
    """The devices of one power cycle. Filled before the guest runs; ``close`` afterwards.

    ``line(name, number, edge)`` makes a wire, taken by its level or its rising edges;
    ``msi_line(name, vector)`` a message (None: this machine has none).
    """

    def __init__(
        self,
        bus: Bus,
        slots: Slots,
        memory: GuestMemory,
        ring: Ring,
        services: Services,
        *,
        line: Callable[[str, int, bool], IrqLine],
        doorbells: Doorbells,
        msi_line: Callable[[str, int], MsiLine] | None,
        ram_end: int,
    ) -> None:
        self._bus = bus
        self._memory = memory
        self._ring = ring
        self._services = services
        self._line = line
        self._doorbells = doorbells
        self._msi_line = msi_line
        self._on_pci = not slots.mmio
        #: Transports in the order of their devices, by name.
        self.virtio: dict[str, VirtioPci | VirtioMmio] = {}
        self._mmio: list[VirtioMmio] = []
        self.edu: list[Edu] = []
        self.pci: PciHost | None = self._make_pci(ram_end) if slots.pci else None

    def _make_pci(self, ram_end: int) -> PciHost:
        from pyvmm.devices.pci.host import PciHost
        from pyvmm.pcitree import windows

        wires = [self._line("pci", number, False) for number in layout.PCI_IRQS]
        host = PciHost(self._bus, wires, windows(ram_end))
        self._bus.map(layout.PCI_ECAM_BASE, layout.PCI_ECAM_SIZE, host, name="pci")
        return host

    def add(self, request: DeviceRequest) -> None:
        """Make the device that was asked for and plug it in. Raises ConfigError and HostError."""
        if not issubclass(request.model, VirtioDevice):
            self._plug_edu(request.name, request.settings)
            return
        device = request.model.open(request.settings, self._services)
        try:
            self.plug(request.name, device)
        except BaseException:
            device.close()
            raise

    def plug(self, name: str, device: VirtioDevice) -> None:
        """Put a virtio device behind the machine's transport. It is closed with the backplane."""
        if self._on_pci:
            self._plug_pci(name, device)
        else:
            self._plug_mmio(name, device)

    def _plug_pci(self, name: str, device: VirtioDevice) -> None:
        from pyvmm.devices.virtio.pci import VirtioPci

        transport = VirtioPci(
            device, self._memory, self._ring, self._services, self._doorbells, self._messages(name)
        )
        self.virtio[name] = transport
        self._add_function(name, transport.function)

    def _plug_mmio(self, name: str, device: VirtioDevice) -> None:
        from pyvmm.devices.virtio.mmio import VirtioMmio

        base, irq = _slot(len(self.virtio))
        line = self._line(name, irq, True)
        transport = VirtioMmio(device, line, self._memory, self._ring, self._services, self._doorbells)
        self.virtio[name] = transport
        self._mmio.append(transport)
        mapping = self._bus.map(base, layout.VIRTIO_SIZE, transport, name=name)
        transport.place(base)
        transport.answer_directly(mapping)

    def _plug_edu(self, name: str, chosen: Settings) -> None:
        from pyvmm.devices.edu import Edu

        loop, workers = self._services.loop, self._services.workers
        dma_mask = chosen.number("dma_mask")
        assert dma_mask is not None  # it has a default
        edu = Edu(self._memory, loop, workers, self._messages(name), dma_mask=dma_mask)
        self.edu.append(edu)
        self._add_function(name, edu.function)

    def _messages(self, name: str) -> MsiLines | None:
        """Makes the messages of one device, vector by vector."""
        make = self._msi_line
        if make is None:
            return None
        vectors = count()
        return lambda: make(name, next(vectors))

    def _add_function(self, name: str, function: PciFunction) -> None:
        assert self.pci is not None
        function.name = name
        self.pci.add(function)

    def has_unacknowledged(self) -> bool:
        """Whether a virtio-mmio device told the guest something, by a pulse, that it has not acknowledged.

        Takes no lock.
        """
        return any(transport.reasons for transport in self._mmio)

    def close(self) -> None:
        """End every device and give back what the host gave. No vCPU runs any more.

        All of them, whatever one of them raises; then raises the first of it.
        """
        parts = (*self.virtio.values(), *self.edu, *([self.pci] if self.pci else []))
        attempt_all(part.close for part in parts)
