# SPDX-License-Identifier: Apache-2.0
"""A device inside KVM: a file descriptor with attributes (group, number) of a few bytes each."""

from __future__ import annotations

import ctypes

from pyvmm.kvm import uapi
from pyvmm.kvm.ioctl import Fd, out_buffer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.kvm.ioctl import Hints


class Device(Fd):
    """What KVM_CREATE_DEVICE returns. Values are little-endian unsigned integers of ``size`` bytes."""

    __slots__ = ()

    def has_attr(self, group: int, attr: int) -> bool:
        """KVM_HAS_DEVICE_ATTR."""
        argument = uapi.DEVICE_ATTR.pack(0, group, attr, 0)
        return self.kernel.raw_ioctl(self.fd, uapi.KVM_HAS_DEVICE_ATTR, argument) == 0

    def get_attr(self, group: int, attr: int, size: int = 4, hints: Hints | None = None) -> int:
        """KVM_GET_DEVICE_ATTR."""
        value = out_buffer(size)
        argument = uapi.DEVICE_ATTR.pack(0, group, attr, ctypes.addressof(value))
        self.kernel.ioctl(self.fd, uapi.KVM_GET_DEVICE_ATTR, argument, hints)
        return int.from_bytes(value.raw, "little")

    def set_attr(
        self, group: int, attr: int, value: int = 0, size: int = 4, hints: Hints | None = None
    ) -> None:
        """KVM_SET_DEVICE_ATTR."""
        buffer = out_buffer(value.to_bytes(size, "little"))
        argument = uapi.DEVICE_ATTR.pack(0, group, attr, ctypes.addressof(buffer))
        self.kernel.ioctl(self.fd, uapi.KVM_SET_DEVICE_ATTR, argument, hints)
