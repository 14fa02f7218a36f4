# SPDX-License-Identifier: Apache-2.0
"""The kernel's side of a vhost device's ioctls, which refuses what the kernel refuses."""

from __future__ import annotations

import os
import struct
from errno import EBUSY, EFAULT, EINVAL, ENOTTY, EPERM

from pyvmm.devices.net import vhostnet
from pyvmm.devices.vhost import kernel as vhost
from pyvmm.devices.virtio import vsock

MRG_RXBUF, INDIRECT, EVENT_IDX, VERSION_1, RING_RESET = 15, 28, 29, 32, 40
FEATURES = sum(1 << bit for bit in (MRG_RXBUF, INDIRECT, EVENT_IDX, VERSION_1, RING_RESET))


class Ring:
    """What one ring was told."""

    def __init__(self):
        self.size = self.base = 0
        self.addresses = None
        self.kick = self.call = self.error = -1
        self.backend = -1

    @property
    def running(self):
        return self.backend != -1


class FakeVhost:
    """Give ``ioctl`` to a Vhost. ``refuse`` maps a request to the errno it fails with."""

    def __init__(self, features=FEATURES):
        self.offered = features
        self.owned = False
        self.features = None
        self.memory = None
        self.rings = {0: Ring(), 1: Ring()}
        self.cid = None
        self.running = False
        self.refuse = {}
        self.requests = []

    def make(self, kind=vhost.Vhost):
        """A Vhost of this class on this kernel."""
        return kind(os.eventfd(0, os.EFD_CLOEXEC), self.ioctl)

    def ioctl(self, _fd, request, argument):
        self.requests.append(request)
        if request in self.refuse:
            raise OSError(self.refuse[request], os.strerror(self.refuse[request]))
        if request not in (vhost.GET_FEATURES, vhost.SET_OWNER):
            self._check(self.owned, EPERM)
        handler = self._HANDLERS.get(request)
        self._check(handler is not None, ENOTTY)
        return handler(self, argument) or b""

    @staticmethod
    def _check(condition, errno):
        if not condition:
            raise OSError(errno, os.strerror(errno))

    def _ring(self, index):
        self._check(index in self.rings, EINVAL)
        return self.rings[index]

    def _set_owner(self, _argument):
        self._check(not self.owned, EBUSY)
        self.owned = True

    def _get_features(self, _argument):
        return struct.pack("=Q", self.offered)

    def _set_features(self, argument):
        (features,) = struct.unpack("=Q", argument)
        self._check(not features & ~self.offered, EINVAL)
        self.features = features

    def _set_memory(self, argument):
        count, _ = struct.unpack_from("=II", argument)
        self.memory = [struct.unpack_from("=QQQQ", argument, 8 + 32 * index) for index in range(count)]

    def _set_number(self, argument):
        index, size = struct.unpack("=II", argument)
        ring = self._ring(index)
        self._check(not ring.running, EBUSY)
        self._check(size and not size & (size - 1), EINVAL)
        ring.size = size

    def _set_base(self, argument):
        index, base = struct.unpack("=II", argument)
        self._check(not self._ring(index).running, EBUSY)
        self._check(base <= 0xFFFF, EINVAL)
        self._ring(index).base = base

    def _get_base(self, argument):
        index, _ = struct.unpack("=II", argument)
        return struct.pack("=II", index, self._ring(index).base)

    def _set_addresses(self, argument):
        index, _flags, desc, used, available, _log = struct.unpack("=IIQQQQ", argument)
        self._ring(index).addresses = (desc, used, available)

    def _eventfd(name):
        def handler(self, argument):
            index, fd = struct.unpack("=Ii", argument)
            if fd >= 0:
                os.fstat(fd)  # it has to be one
            setattr(self._ring(index), name, fd)

        return handler

    def _set_backend(self, argument):
        index, fd = struct.unpack("=Ii", argument)
        ring = self._ring(index)
        self._check(fd == -1 or (self.memory and ring.addresses), EFAULT)
        ring.backend = fd

    def _set_cid(self, argument):
        (self.cid,) = struct.unpack("=Q", argument)

    def _set_running(self, argument):
        (running,) = struct.unpack("=i", argument)
        self._check(not running or all(ring.addresses for ring in self.rings.values()), EFAULT)
        self.running = bool(running)
        for ring in self.rings.values():
            ring.backend = 0 if running else -1

    _HANDLERS = {  # noqa: RUF012
        vhost.SET_OWNER: _set_owner,
        vhost.GET_FEATURES: _get_features,
        vhost.SET_FEATURES: _set_features,
        vhost.SET_MEM_TABLE: _set_memory,
        vhost.SET_VRING_NUM: _set_number,
        vhost.SET_VRING_BASE: _set_base,
        vhost.GET_VRING_BASE: _get_base,
        vhost.SET_VRING_ADDR: _set_addresses,
        vhost.SET_VRING_KICK: _eventfd("kick"),
        vhost.SET_VRING_CALL: _eventfd("call"),
        vhost.SET_VRING_ERR: _eventfd("error"),
        vhostnet.NET_SET_BACKEND: _set_backend,
        vsock.VSOCK_SET_GUEST_CID: _set_cid,
        vsock.VSOCK_SET_RUNNING: _set_running,
    }
