# SPDX-License-Identifier: Apache-2.0
"""The machine's power button: a virtio-mmio slot with a keyboard of one key, made when the guest looks at it.

Until then it is a page on the bus and a node in the device tree, so that a guest without drivers for it, and
the start of every machine, pays nothing.
"""

from __future__ import annotations

import threading

from pyvmm.errors import MachineError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.base import After, Doorbells, IrqLine
    from pyvmm.devices.virtio.device import Services
    from pyvmm.devices.virtio.mmio import VirtioMmio
    from pyvmm.devices.virtio.powerkey import PowerKey
    from pyvmm.fdt import Node
    from pyvmm.memory import GuestMemory


class PowerButton:
    """See the module (protocol ``Device``). ``base`` is where the guest finds it, for its doorbells."""

    def __init__(
        self, irq: IrqLine, memory: GuestMemory, services: Services, doorbells: Doorbells, base: int
    ) -> None:
        self.lock = threading.Lock()
        self._irq = irq
        self._memory = memory
        self._services = services
        self._doorbells = doorbells
        self._base = base
        self._key: PowerKey | None = None
        self._transport: VirtioMmio | None = None

    def press(self) -> None:
        """Press the key and let it go. Raises MachineError when no driver of the guest watches it."""
        with self.lock:
            if self._key is None or not self._key.press():
                raise MachineError(
                    "The guest does not watch its power key: it has not loaded drivers for it "
                    "(Linux's are virtio_mmio, virtio_input and evdev)."
                )

    def has_unacknowledged(self) -> bool:
        """Whether the guest was told something, by a pulse, that it has not acknowledged. Takes no lock."""
        return self._transport is not None and self._transport.reasons != 0

    @staticmethod
    def describe(node: Node) -> None:
        """Devicetree properties (binding virtio,mmio)."""
        node["compatible"] = "virtio,mmio"
        node["dma-coherent"] = None

    def decode(self, offset: int, size: int, is_write: bool, value: int) -> tuple[str, str]:
        """Names for the trace. Without the lock, and before the access when that is a store."""
        with self.lock:
            transport = self._made()
        return transport.decode(offset, size, is_write, value)

    # Protocol ``Device``, with the lock held

    def read(self, offset: int, size: int) -> int:
        """A register of the slot."""
        return self._made().read(offset, size)

    def write(self, offset: int, size: int, value: int) -> After:
        """A register of the slot."""
        return self._made().write(offset, size, value)

    def reset(self) -> None:
        """Power-on."""
        if self._transport is not None:
            self._transport.reset()

    def _made(self) -> VirtioMmio:
        if self._transport is None:
            from pyvmm.devices.virtio.mmio import VirtioMmio
            from pyvmm.devices.virtio.powerkey import PowerKey
            from pyvmm.ring import Ring

            key = PowerKey(self.lock)
            self._transport = VirtioMmio(
                key, self._irq, self._memory, Ring(), self._services, self._doorbells
            )
            self._transport.place(self._base)
            self._key = key
        return self._transport

    def close(self) -> None:
        """End with the machine. Without the lock."""
        if self._transport is not None:
            self._transport.close()
