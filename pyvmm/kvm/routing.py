# SPDX-License-Identifier: Apache-2.0
"""The GSI routing table: which interrupt an irqfd's number (GSI) stands for.

The kernel only takes the whole table at once, so it lives here and is handed over when somebody needs it:
a guest that programs thirty MSI-X vectors one after the other costs one ioctl, not thirty.
"""

from __future__ import annotations

import threading

from pyvmm.errors import HostError
from pyvmm.kvm import uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.kvm.vm import Vm


def irqchip_entry(gsi: int, pin: int) -> bytes:
    """A packed route from ``gsi`` to source ``pin`` of the in-kernel APLIC."""
    return uapi.IRQ_ROUTING_IRQCHIP.pack(gsi, uapi.KVM_IRQ_ROUTING_IRQCHIP, 0, 0, pin)


def msi_entry(gsi: int, address: int, data: int) -> bytes:
    """A packed route from ``gsi`` to a message: ``data`` written to ``address``."""
    low, high = address & 0xFFFF_FFFF, address >> 32
    return uapi.IRQ_ROUTING_MSI.pack(gsi, uapi.KVM_IRQ_ROUTING_MSI, 0, low, high, data, 0)


class GsiRouting:
    """The machine's table. GSIs 0..sources are the APLIC's own pins, as the kernel sets them up at INIT.

    Callable from any thread: one lock, held while the kernel takes the table, nothing else is called under
    it. A device may hold its own lock when it calls in.
    """

    __slots__ = ("_attached", "_changed", "_first", "_limit", "_lock", "_messages", "_pins", "_vm")

    def __init__(self, vm: Vm, sources: int) -> None:
        self._vm = vm
        self._lock = threading.Lock()
        self._first = sources + 1
        self._limit = vm.check_extension(uapi.KVM_CAP_IRQ_ROUTING)
        self._pins = [irqchip_entry(pin, pin) for pin in range(self._first)] if sources else []
        self._messages: dict[int, tuple[int, int]] = {}  # gsi -> address, data
        self._attached: set[int] = set()
        self._changed = False

    def allocate(self, address: int, data: int) -> int:
        """A GSI for a message. The kernel hears of it when it is attached. HostError when none is left."""
        with self._lock:
            for gsi in range(self._first, self._limit):
                if gsi not in self._messages:
                    self._messages[gsi] = (address, data)
                    self._changed = True
                    return gsi
        raise HostError(f"all {self._limit} interrupt routes of this virtual machine are in use")

    def update(self, gsi: int, address: int, data: int) -> None:
        """Change the message behind a GSI: at once when an eventfd is attached, else when one will be."""
        with self._lock:
            if self._messages[gsi] == (address, data):
                return
            self._messages[gsi] = (address, data)
            self._changed = True
            if gsi in self._attached:
                self._commit()

    def free(self, gsi: int) -> None:
        """Give a GSI back. Its eventfd was detached before."""
        with self._lock:
            if gsi in self._attached:
                raise ValueError(f"GSI {gsi} still has an eventfd attached")
            del self._messages[gsi]
            self._changed = True

    def attach(self, gsi: int, eventfd: int) -> None:
        """Let writes to ``eventfd`` raise ``gsi``; commits the table first when it changed."""
        with self._lock:
            self._commit()
            self._vm.irqfd(eventfd, gsi)
            self._attached.add(gsi)

    def detach(self, gsi: int, eventfd: int) -> None:
        """Undo :meth:`attach`. After it returns no more interrupts come from the eventfd."""
        with self._lock:
            self._vm.irqfd(eventfd, gsi, deassign=True)
            self._attached.discard(gsi)

    def describe(self) -> list[dict[str, int | bool]]:
        """The message routes: GSI, message, and whether an irqfd raises it."""
        with self._lock:
            return [
                {"gsi": gsi, "address": address, "data": data, "irqfd": gsi in self._attached}
                for gsi, (address, data) in sorted(self._messages.items())
            ]

    def commit(self) -> None:
        """Hand the table to the kernel if it changed since the last time."""
        with self._lock:
            self._commit()

    def _commit(self) -> None:
        if not self._changed:
            return
        messages = [msi_entry(gsi, *message) for gsi, message in sorted(self._messages.items())]
        self._vm.set_gsi_routing(self._pins + messages)
        self._changed = False
