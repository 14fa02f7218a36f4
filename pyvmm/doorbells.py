# SPDX-License-Identifier: Apache-2.0
"""Doorbells: guest stores that KVM turns into an eventfd (KVM_IOEVENTFD), without an exit."""

from __future__ import annotations

import os

from pyvmm.errors import KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.kvm.vm import Vm


class KernelDoorbell:
    """One doorbell (protocol ``Doorbell``). ``address`` is where it is, if it is anywhere."""

    __slots__ = ("_registry", "_vm", "address", "fd", "size", "value")

    def __init__(self, vm: Vm, registry: list[KernelDoorbell], size: int, value: int | None) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.address: int | None = None
        self._vm = vm
        self.size = size
        self.value = value
        self._registry = registry
        registry.append(self)

    def place(self, address: int | None) -> None:
        """Listen there. In between, and where KVM refuses, a store causes an exit: the register takes it."""
        if address == self.address:
            return
        if self.address is not None:
            self._vm.ioeventfd(self.fd, self.address, self.size, self.value, deassign=True)
            self.address = None
        if address is not None:
            try:
                self._vm.ioeventfd(self.fd, address, self.size, self.value)
            except KvmError:
                return  # no room on KVM's bus
            self.address = address

    def close(self) -> None:
        """Release it."""
        if self in self._registry:
            self._registry.remove(self)
            try:
                self.place(None)
            except KvmError:
                pass  # KVM declared the machine dead; it goes with the machine's descriptor
            os.close(self.fd)


class Doorbells:
    """Makes doorbells of one virtual machine, and keeps a list of them."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self.all: list[KernelDoorbell] = []

    def describe(self) -> list[dict[str, int | None]]:
        """Where KVM listens: address, size and value of every store that becomes an eventfd."""
        return [
            {"address": bell.address, "size": bell.size, "value": bell.value}
            for bell in self.all
            if bell.address is not None
        ]

    def __call__(self, size: int, value: int | None) -> KernelDoorbell:
        """For stores of ``size`` bytes, of any value or of one."""
        return KernelDoorbell(self._vm, self.all, size, value)
