# SPDX-License-Identifier: Apache-2.0
"""One virtual machine: memory slots, vCPUs, interrupts and doorbells; one method an ioctl."""

from __future__ import annotations

import ctypes
from errno import EBUSY, EEXIST, EFAULT, EINVAL, ENODEV, ENOENT, ENXIO, EPERM

from pyvmm.errors import KvmError
from pyvmm.kvm import uapi
from pyvmm.kvm.device import Device
from pyvmm.kvm.ioctl import Fd, out_buffer
from pyvmm.kvm.vcpu import Vcpu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.kvm.ioctl import Kernel

_VCPU_HINTS = {
    EEXIST: "this virtual machine already has a vCPU with that id",
    EINVAL: "the id is not below the host's limit of vCPUs (KVM_CAP_MAX_VCPUS)",
    EBUSY: "the in-kernel AIA is initialised: all vCPUs must exist before that",
}
_IRQ_LINE_HINTS = {
    ENXIO: "this virtual machine has no in-kernel interrupt controller",
    EBUSY: "the in-kernel AIA is not initialised yet",
    ENODEV: "the in-kernel APLIC has no such source",
}
_MSI_HINTS = {
    EINVAL: "no in-kernel AIA, or the interrupt identity is beyond what its IMSIC files have",
    ENODEV: "the interrupt identity is 0, or the address is not the start of an IMSIC page",
}
_ROUTING_HINTS = {EINVAL: "no in-kernel AIA, a route to a pin or GSI that does not exist, or too many routes"}
_IRQFD_HINTS = {EBUSY: "this eventfd already serves another interrupt"}
_IOEVENTFD_HINTS = {
    EEXIST: "another eventfd waits for the same address, length and value",
    EINVAL: "the length must be 0, 1, 2, 4 or 8, and 0 cannot be combined with a value",
    ENOENT: "no such ioeventfd",
}
_DEVICE_HINTS = {
    ENODEV: "this host has no such in-kernel device",
    EEXIST: "this virtual machine already has one",
    EBUSY: "a vCPU has run already: devices come first",
}


class Vm(Fd):
    """A virtual machine's file descriptor, and a record of its memory slots.

    Only the process that created it may use it (not a forked child); any of its threads may. Memory slots
    are changed by one thread at a time: the machine's. Closing it does not close vCPUs or devices, and the
    kernel keeps the machine until the last of them is closed.
    """

    __slots__ = ("_has_memory2", "_slots", "_vcpu_mmap_size")

    def __init__(self, kernel: Kernel, fd: int, vcpu_mmap_size: int) -> None:
        super().__init__(kernel, fd)
        self._vcpu_mmap_size = vcpu_mmap_size
        try:
            self._has_memory2 = bool(self.check_extension(uapi.KVM_CAP_USER_MEMORY2))
        except KvmError:
            self.close()
            raise
        self._slots: dict[int, tuple[int, int, int, int]] = {}  # slot -> gpa, size, host_address, flags

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION on this machine: 0 when absent."""
        return self.kernel.ioctl(self.fd, uapi.KVM_CHECK_EXTENSION, capability)

    def enable_cap(self, capability: int, *arguments: int, flags: int = 0) -> None:
        """KVM_ENABLE_CAP with up to four arguments. Some capabilities can only be probed by this."""
        padded = (*arguments, 0, 0, 0, 0)[:4]
        self.kernel.ioctl(self.fd, uapi.KVM_ENABLE_CAP, uapi.ENABLE_CAP.pack(capability, flags, *padded))

    # Memory

    def set_user_memory_region(
        self, slot: int, gpa: int, size: int, host_address: int, flags: int = 0
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION(2): guest-physical [gpa, gpa+size) is the memory at ``host_address``.

        Everything in bytes and multiples of 4 KiB. The memory must stay mapped until the slot is deleted or
        the machine is gone. An existing slot may change only its ``gpa`` and its dirty-log flag.
        """
        self._set_region(slot, gpa, size, host_address, flags)
        self._slots[slot] = (gpa, size, host_address, flags)

    def delete_user_memory_region(self, slot: int) -> None:
        """Take a slot away; guest accesses to its range then leave as MMIO."""
        self._slot(slot)
        self._set_region(slot, 0, 0, 0, 0)
        del self._slots[slot]

    def move_user_memory_region(self, slot: int, gpa: int) -> None:
        """Move a slot to another guest-physical address; its contents go with it."""
        _, size, host_address, flags = self._slot(slot)
        self.set_user_memory_region(slot, gpa, size, host_address, flags)

    def memory_slots(self) -> list[dict[str, int]]:
        """Every slot: number, guest-physical base, size, host address, flags."""
        return [
            {"slot": slot, "base": gpa, "size": size, "host": host, "flags": flags}
            for slot, (gpa, size, host, flags) in sorted(self._slots.items())
        ]

    def _slot(self, slot: int) -> tuple[int, int, int, int]:
        if slot not in self._slots:
            raise KvmError("KVM_SET_USER_MEMORY_REGION", EINVAL, f"there is no memory slot {slot}")
        return self._slots[slot]

    def _set_region(self, slot: int, gpa: int, size: int, host_address: int, flags: int) -> None:
        if self._has_memory2:
            request = uapi.KVM_SET_USER_MEMORY_REGION2
            argument = uapi.USERSPACE_MEMORY_REGION2.pack(slot, flags, gpa, size, host_address, 0, 0)
        else:
            request = uapi.KVM_SET_USER_MEMORY_REGION
            argument = uapi.USERSPACE_MEMORY_REGION.pack(slot, flags, gpa, size, host_address)
        if self.kernel.raw_ioctl(self.fd, request, argument) < 0:
            errno = self.kernel.errno()
            raise KvmError("KVM_SET_USER_MEMORY_REGION", errno, self._region_hint(errno, slot, gpa, size))

    def _region_hint(self, errno: int, slot: int, gpa: int, size: int) -> str:
        where = f"slot {slot} [0x{gpa:x}..0x{gpa + size - 1:x}]"
        if errno == EEXIST:
            return f"{where} overlaps {self._overlapping(slot, gpa, size)}"
        if errno == EFAULT:
            bits = self.check_extension(uapi.KVM_CAP_VM_GPA_BITS)
            return f"{where} ends above this host's {bits}-bit guest-physical addresses"
        if errno == EPERM:
            return f"the memory behind {where} is not writable here: use KVM_MEM_READONLY"
        if errno == EINVAL and slot in self._slots:
            return f"{where} exists: its size, host address and read-only flag cannot change, delete it first"
        if errno == EINVAL:
            return f"{where} and its host address must be multiples of 4 KiB, and the slot number below 32767"
        return where

    def _overlapping(self, slot: int, gpa: int, size: int) -> str:
        for other, (base, length, _, _) in self._slots.items():
            if other != slot and base < gpa + size and gpa < base + length:
                return f"slot {other} [0x{base:x}..0x{base + length - 1:x}]"
        return "another slot"

    def get_dirty_log(self, slot: int, npages: int) -> int:
        """KVM_GET_DIRTY_LOG: a bitmap of the slot's pages that the guest wrote, bit 0 for its first page.

        Reading clears it, unless manual protection was enabled. The slot needs KVM_MEM_LOG_DIRTY_PAGES. What
        pyvmm itself writes through its own mapping is not in it.
        """
        bitmap = out_buffer((npages + 63) // 64 * 8)
        argument = uapi.DIRTY_LOG.pack(slot, ctypes.addressof(bitmap))
        self.kernel.ioctl(self.fd, uapi.KVM_GET_DIRTY_LOG, argument, {ENOENT: "the slot has no dirty log"})
        return int.from_bytes(bitmap.raw, "little")

    def clear_dirty_log(self, slot: int, first_page: int, npages: int, bitmap: int) -> None:
        """KVM_CLEAR_DIRTY_LOG: protect again the pages of ``bitmap``, whose bit 0 is ``first_page``.

        For machines with KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 enabled. ``first_page`` is a multiple of 64, and
        so is ``npages`` unless it reaches the slot's end.
        """
        words = out_buffer(bitmap.to_bytes((npages + 63) // 64 * 8, "little"))
        argument = uapi.CLEAR_DIRTY_LOG.pack(slot, npages, first_page, ctypes.addressof(words))
        self.kernel.ioctl(self.fd, uapi.KVM_CLEAR_DIRTY_LOG, argument)

    # vCPUs and devices

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """KVM_CREATE_VCPU. The id is the hart id that the guest sees.

        The first vCPU created starts runnable, every later one stopped until SBI HSM starts it.
        """
        fd = self.kernel.ioctl(self.fd, uapi.KVM_CREATE_VCPU, vcpu_id, _VCPU_HINTS)
        return Vcpu(self.kernel, fd, vcpu_id, self._vcpu_mmap_size)

    def has_device(self, device_type: int) -> bool:
        """KVM_CREATE_DEVICE with the test flag: could this kind of device be made?"""
        argument = out_buffer(uapi.CREATE_DEVICE.pack(device_type, 0, uapi.KVM_CREATE_DEVICE_TEST))
        return self.kernel.raw_ioctl(self.fd, uapi.KVM_CREATE_DEVICE, argument) == 0

    def create_device(self, device_type: int) -> Device:
        """KVM_CREATE_DEVICE."""
        argument = out_buffer(uapi.CREATE_DEVICE.pack(device_type, 0, 0))
        self.kernel.ioctl(self.fd, uapi.KVM_CREATE_DEVICE, argument, _DEVICE_HINTS)
        return Device(self.kernel, uapi.CREATE_DEVICE.unpack(argument.raw)[1])

    # Interrupts and doorbells

    def irq_line(self, irq: int, level: bool) -> None:
        """KVM_IRQ_LINE: drive source ``irq`` of the in-kernel APLIC. It bypasses the GSI routes.

        A level raised while the guest has the source inactive does not become pending when it configures it.
        """
        argument = uapi.IRQ_LEVEL.pack(irq, level)
        self.kernel.ioctl(self.fd, uapi.KVM_IRQ_LINE, argument, _IRQ_LINE_HINTS)

    def signal_msi(self, address: int, data: int) -> None:
        """KVM_SIGNAL_MSI: write ``data`` to an in-kernel IMSIC page.

        An address that is no hart's page is dropped in silence by the kernel: a device could do the same.
        """
        argument = uapi.MSI.pack(address & 0xFFFF_FFFF, address >> 32, data, 0, 0)
        self.kernel.ioctl(self.fd, uapi.KVM_SIGNAL_MSI, argument, _MSI_HINTS)

    def set_gsi_routing(self, entries: Sequence[bytes]) -> None:
        """KVM_SET_GSI_ROUTING: replace the whole table by these packed entries (``pyvmm.kvm.routing``)."""
        argument = uapi.IRQ_ROUTING.pack(len(entries), 0) + b"".join(entries)
        self.kernel.ioctl(self.fd, uapi.KVM_SET_GSI_ROUTING, argument, _ROUTING_HINTS)

    def irqfd(self, fd: int, gsi: int, deassign: bool = False) -> None:
        """KVM_IRQFD: a write to eventfd ``fd`` raises ``gsi``.

        Only for GSIs with an MSI route. On a wired APLIC source the kernel raises the line and never lowers
        it, and its resample flag does nothing on RISC-V: drive wires with :meth:`irq_line`.
        """
        flags = uapi.KVM_IRQFD_FLAG_DEASSIGN if deassign else 0
        self.kernel.ioctl(self.fd, uapi.KVM_IRQFD, uapi.IRQFD.pack(fd, gsi, flags, 0), _IRQFD_HINTS)

    def ioeventfd(
        self, fd: int, address: int, length: int, datamatch: int | None = None, deassign: bool = False
    ) -> None:
        """KVM_IOEVENTFD: a guest store at exactly ``address`` signals eventfd ``fd`` and causes no exit.

        ``length`` is the store's width in bytes, or 0 for any; ``datamatch`` limits it to one value.
        """
        flags = uapi.KVM_IOEVENTFD_FLAG_DEASSIGN if deassign else 0
        if datamatch is not None:
            flags |= uapi.KVM_IOEVENTFD_FLAG_DATAMATCH
        argument = uapi.IOEVENTFD.pack(datamatch or 0, address, length, fd, flags)
        self.kernel.ioctl(self.fd, uapi.KVM_IOEVENTFD, argument, _IOEVENTFD_HINTS)

    def register_coalesced_mmio(self, address: int, size: int) -> None:
        """KVM_REGISTER_COALESCED_MMIO: stores inside the zone go to the ring (``pyvmm.kvm.coalesced``)."""
        argument = uapi.COALESCED_MMIO_ZONE.pack(address, size, 0)
        self.kernel.ioctl(self.fd, uapi.KVM_REGISTER_COALESCED_MMIO, argument)

    def unregister_coalesced_mmio(self, address: int, size: int) -> None:
        """KVM_UNREGISTER_COALESCED_MMIO: every zone that lies inside the range. None is no error."""
        argument = uapi.COALESCED_MMIO_ZONE.pack(address, size, 0)
        self.kernel.ioctl(self.fd, uapi.KVM_UNREGISTER_COALESCED_MMIO, argument)
