# SPDX-License-Identifier: Apache-2.0
"""vhost: the half of a virtio device that lives in the host's kernel and works its rings (<linux/vhost.h>).

pyvmm negotiates, says where guest memory and the rings are, and lends two eventfds a ring: one that the
driver's notifications arrive on, one that interrupts the guest. After that no byte and no notification comes
through Python, until the driver resets the device.

What a hostile guest can do: break its rings. The kernel checks every address against the memory table, stops
at what makes no sense, and says so on a third eventfd, which becomes DEVICE_NEEDS_RESET.
"""

from __future__ import annotations

import os
import struct

from pyvmm.devices.hostioctl import host_ioctl
from pyvmm.devices.hostnode import open_node
from pyvmm.devices.vhost.structs import U64, VRING_STATE, memory_table, vring_addresses
from pyvmm.devices.virtio import bits
from pyvmm.errors import ConfigError
from pyvmm.memory import RAM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from pyvmm.devices.hostioctl import Ioctl
    from pyvmm.devices.virtio.queue import QueueSetup
    from pyvmm.devices.virtio.session import ActiveQueue, Session
    from pyvmm.memory import GuestMemory

GET_FEATURES, SET_FEATURES, SET_OWNER = 0x8008_AF00, 0x4008_AF00, 0x0000_AF01
SET_MEM_TABLE = 0x4008_AF03
SET_VRING_NUM, SET_VRING_ADDR = 0x4008_AF10, 0x4028_AF11
SET_VRING_BASE, GET_VRING_BASE = 0x4008_AF12, 0xC008_AF12
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 0x4008_AF20, 0x4008_AF21, 0x4008_AF22

_VRING_FILE = struct.Struct("=Ii")  # index, descriptor; -1 for none


class Vhost:
    """One open vhost device: a method an ioctl. They raise OSError as the kernel gives it."""

    def __init__(self, fd: int, ioctl: Ioctl = host_ioctl) -> None:
        self.fd = fd
        self.ioctl = ioctl
        self._set(SET_OWNER, 0)
        self.features = int.from_bytes(ioctl(fd, GET_FEATURES, bytes(U64.size)), "little")

    def _set(self, request: int, argument: int | bytes) -> None:
        self.ioctl(self.fd, request, argument)

    @classmethod
    def open(cls, what: str, node: str, module: str) -> Self:
        """Open the device node. Raises ConfigError with a sentence that says what to do."""
        fd = open_node(what, node, module=module, ask="join the group that it belongs to, often kvm")
        try:
            return cls(fd)
        except OSError as error:
            os.close(fd)
            raise ConfigError(f"{what} cannot use {node}: {error.strerror}.") from error

    @property
    def withheld(self) -> int:
        """Features of rings and transports that must not be offered: the kernel does not know them."""
        return bits.TRANSPORT_FEATURES & ~self.features

    def set_features(self, features: int) -> None:
        """What was negotiated; the kernel hears of what it knows."""
        self._set(SET_FEATURES, U64.pack(features & self.features))

    def set_memory(self, memory: GuestMemory) -> None:
        """The guest's RAM; nothing else may hold rings or buffers."""
        self._set(SET_MEM_TABLE, memory_table([bank for bank in memory.banks if bank.kind == RAM]))

    def set_ring(self, index: int, setup: QueueSetup, memory: GuestMemory, base: int) -> None:
        """Where the split ring ``index`` is, and the available index to go on from."""
        addresses = vring_addresses(index, setup, memory)
        self._set(SET_VRING_NUM, VRING_STATE.pack(index, setup.size))
        self._set(SET_VRING_BASE, VRING_STATE.pack(index, base))
        self._set(SET_VRING_ADDR, addresses)

    def set_eventfds(self, index: int, kick: int, call: int, error: int) -> None:
        """The eventfds of ring ``index``; -1 takes one away."""
        self._set(SET_VRING_ERR, _VRING_FILE.pack(index, error))
        self._set(SET_VRING_CALL, _VRING_FILE.pack(index, call))
        self._set(SET_VRING_KICK, _VRING_FILE.pack(index, kick))

    def ring_base(self, index: int) -> int:
        """The available index where the kernel stands."""
        answer = self.ioctl(self.fd, GET_VRING_BASE, VRING_STATE.pack(index, 0))
        _, base = VRING_STATE.unpack(answer)
        return int(base) & 0xFFFF

    def close(self) -> None:
        """End it. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


class VhostRing:
    """A queue that the kernel works, between ``prepare`` and ``release``.

    In between, the owner starts and stops it in the way of its kind of device.
    """

    def __init__(self, vhost: Vhost, index: int, session: Session, queue: ActiveQueue) -> None:
        self._vhost = vhost
        self._index = index
        self._session = session
        self.queue = queue
        self.prepared = False
        queue.offloaded = queue.ring is not None  # also while it waits: no kick of it is for us
        self._error_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._watch = session.watch(self._error_fd, self._broken)

    def prepare(self) -> bool:
        """Tell the kernel of the ring. False: the driver has none there, or broke a rule. Raises OSError."""
        queue = self.queue
        if self.prepared or queue.ring is None or queue.setup is None or not self._session.alive:
            return self.prepared
        kick, call = queue.offload()
        base = queue.ring.state()["available"]
        self._vhost.set_ring(self._index, queue.setup, self._session.memory, base)
        self._vhost.set_eventfds(self._index, kick, call, self._error_fd)
        self.prepared = True
        return True

    def kick(self) -> None:
        """Let the kernel look at the ring: the driver may have notified before it listened."""
        os.eventfd_write(self.queue.kick_fd, 1)

    def release(self) -> None:
        """Take the ring back, stopped before. The queue knows then how far the kernel came."""
        if not self.prepared:
            return
        self.prepared = False
        try:
            base = self._vhost.ring_base(self._index)
            self._vhost.set_eventfds(self._index, -1, -1, -1)
        except OSError:  # there is nothing to undo, then
            return
        if self.queue.ring is not None:
            self.queue.ring.load_state({"available": base, "used": base, "signalled": base})

    def close(self) -> None:
        """Release it, and give back what was opened. Not to be used again."""
        self.release()
        self._session.unwatch(self._watch)
        os.close(self._error_fd)

    def _broken(self, _events: int) -> None:
        self._session.fail("the host's kernel found a virtqueue that is broken")
