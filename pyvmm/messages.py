# SPDX-License-Identifier: Apache-2.0
"""Message-signalled interrupts into the in-kernel AIA: an eventfd, a GSI route to the message, an irqfd.

Once the irqfd is attached a signal is one write to the eventfd, by us or by a kernel half (vhost), and the
kernel does the rest. Where no route can be had the loop reads the eventfd and uses KVM_SIGNAL_MSI.
"""

from __future__ import annotations

import os
import select
import threading

from pyvmm.errors import HostError, KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.base import Loop, Watch
    from pyvmm.kvm.routing import GsiRouting
    from pyvmm.kvm.vm import Vm
    from pyvmm.suspend import Suspension


class KernelMsiLine:
    """One message (protocol ``MsiLine``). Nothing is asked of the kernel before it is first opened."""

    __slots__ = (
        "_forwarding",
        "_gsi",
        "_loop",
        "_open",
        "_routing",
        "_suspension",
        "_vm",
        "_watch",
        "address",
        "data",
        "fd",
    )

    def __init__(self, vm: Vm, routing: GsiRouting, loop: Loop, suspension: Suspension) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._vm = vm
        self._routing = routing
        self._loop = loop
        self._suspension = suspension
        self._gsi: int | None = None
        self._watch: Watch | None = None
        self._open = False
        self._forwarding = threading.Lock()  # a leaf; held while a message without a route is sent
        self.address = 0
        self.data = 0

    @property
    def route(self) -> str:
        """How a signal travels now, for people."""
        if not self._open:
            return "shut"
        return "KVM_SIGNAL_MSI" if self._gsi is None else f"GSI {self._gsi}"

    def program(self, address: int, data: int) -> None:
        """Set the message; at once, when the line is open."""
        self.address, self.data = address, data
        if self._gsi is not None:
            self._routing.update(self._gsi, address, data)

    def open(self) -> None:
        """Deliver from now on; KVM looks at the eventfd when the irqfd is attached."""
        if self._open:
            return
        self._open = True
        try:
            if self._gsi is None:
                self._gsi = self._routing.allocate(self.address, self.data)
            self._routing.attach(self._gsi, self.fd)
        except HostError:
            if self._gsi is not None:
                self._routing.free(self._gsi)
                self._gsi = None
            self._watch = self._loop.watch(self.fd, self._forward)

    def shut(self) -> None:
        """Keep signals back: they stay in the eventfd."""
        if not self._open:
            return
        self._open = False
        if self._gsi is not None:
            self._routing.detach(self._gsi, self.fd)
        with self._forwarding:
            if self._watch is not None:
                self._watch.close()
                self._watch = None

    def signal(self) -> None:
        """One message."""
        os.eventfd_write(self.fd, 1)
        self._suspension.wake()

    def pending(self) -> bool:
        """Whether a signal was kept back."""
        if self._open:
            return False
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        return bool(poller.poll(0))

    def clear(self) -> None:
        """Forget what was kept back."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Release the route and the eventfd."""
        try:
            self.shut()
            if self._gsi is not None:
                self._routing.free(self._gsi)
        except KvmError:
            pass  # KVM declared the machine dead; the irqfd goes with the machine's descriptor
        self._gsi = None
        os.close(self.fd)

    def _forward(self, _events: int) -> None:
        """On the loop's thread: there is no route."""
        with self._forwarding:
            if self._watch is None:
                return  # shut meanwhile: the signal stays where it is
            try:
                os.eventfd_read(self.fd)
                self._vm.signal_msi(self.address, self.data)
            except (BlockingIOError, KvmError):
                pass  # taken back meanwhile; or the guest named an interrupt that does not exist
