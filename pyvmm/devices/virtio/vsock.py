# SPDX-License-Identifier: Apache-2.0
"""virtio-vsock (virtio 1.2, section 5.10): sockets between the guest and its host, by vhost-vsock.

The host's kernel works the receive and transmit queues, and host programs reach the guest as AF_VSOCK address
``cid``. The event queue is ours: the driver leaves buffers in it for events that never come, since this
transport is not reset under a running guest.

What a hostile guest can do: break its rings, see vhost; and connect to any AF_VSOCK listener of the host, as
the device is for.
"""

from __future__ import annotations

import struct
from errno import EADDRINUSE

from pyvmm.devices import settings as values
from pyvmm.devices.vhost.kernel import Vhost, VhostRing
from pyvmm.devices.virtio import bits
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.errors import ConfigError, HostError
from pyvmm.mmio.regs import Reg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pyvmm.devices.settings import Settings
    from pyvmm.devices.virtio.device import Services
    from pyvmm.devices.virtio.session import ActiveQueue, Session

NODE = "/dev/vhost-vsock"
VSOCK_SET_GUEST_CID, VSOCK_SET_RUNNING = 0x4008_AF60, 0x4004_AF61
QUEUE_SIZE = 128
F_SEQPACKET = 1
_FIRST_CID, _LAST_CID = 3, 0xFFFF_FFFE  # 0 to 2 and all ones are taken: hypervisor, local, host, any
_U64 = struct.Struct("=Q")
_INT = struct.Struct("=i")


class VhostVsock(Vhost):
    """One open /dev/vhost-vsock: ring 0 receives, ring 1 transmits."""

    def set_guest_cid(self, cid: int) -> None:
        """The guest's address."""
        self._set(VSOCK_SET_GUEST_CID, _U64.pack(cid))

    def set_running(self, running: bool) -> None:
        """Start or stop both rings."""
        self._set(VSOCK_SET_RUNNING, _INT.pack(running))


class Vsock(VirtioDevice):
    """See the module. Queues: receive, transmit, event."""

    NAME = "vsock"
    SIZE = 8
    DEVICE_ID = 19
    SETTINGS: ClassVar[dict[str, values.Setting]] = {
        "cid": values.number("the guest's address, one no other guest has", _FIRST_CID, _LAST_CID),
    }
    POSITIONAL = ("cid",)

    GUEST_CID = Reg(0, 64, access="r", sizes=(4, 8))

    def __init__(self, vhost: VhostVsock, cid: int) -> None:
        super().__init__((QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE))
        self._vhost = vhost
        self._cid = cid
        self._session: Session | None = None
        self._rings: tuple[VhostRing, ...] = ()
        # One ring cannot be stopped without the other, so none is reset alone.
        self.withheld = vhost.withheld | bits.feature_set(bits.F_RING_RESET, bits.F_RING_PACKED)
        self.reset()

    @classmethod
    def check(cls, settings: Settings) -> None:
        """The guest needs an address. Raises ConfigError."""
        if settings.number("cid") is None:
            raise ConfigError(f"{settings.what} needs cid=, the guest's address: a number from {_FIRST_CID}.")

    @classmethod
    def open(cls, settings: Settings, services: Services) -> Vsock:
        """Take the address. Raises ConfigError when it, or vhost-vsock, is not to be had."""
        del services
        cls.check(settings)
        cid = settings.number("cid")
        assert cid is not None
        vhost = VhostVsock.open(settings.what, NODE, "vhost_vsock")
        try:
            vhost.set_guest_cid(cid)
        except OSError as error:
            vhost.close()
            if error.errno == EADDRINUSE:
                say = f"{settings.what}: CID {cid} is in use by another guest; choose another one."
                raise ConfigError(say) from error
            say = f"{settings.what}: the host refuses CID {cid}: {error.strerror}."
            raise HostError(say, error.errno or 0) from error
        return cls(vhost, cid)

    def reset(self) -> None:
        """Power-on values."""
        super().reset()
        self.GUEST_CID = self._cid

    def offered(self) -> int:
        """What the kernel can of the device's own features."""
        return self._vhost.features & 1 << F_SEQPACKET

    def activate(self, session: Session) -> None:
        """Hand receive and transmit to the kernel."""
        self._session = session
        self._rings = tuple(
            VhostRing(self._vhost, index, session, session.queues[index]) for index in range(2)
        )
        try:
            self._vhost.set_features(session.features)
            self._vhost.set_memory(session.memory)
        except OSError as error:
            self._refused(error)
            return
        self._run()

    def _run(self) -> None:
        """Start the kernel's half once both of its queues are there."""
        rings = self._rings
        if all(ring.prepared for ring in rings) or any(ring.queue.ring is None for ring in rings):
            return
        try:
            if not all(ring.prepare() for ring in rings):
                return
            self._vhost.set_running(True)
            for ring in rings:
                ring.kick()
        except OSError as error:
            self._refused(error)

    def _refused(self, error: OSError) -> None:
        if self._session is not None:
            self._session.fail(f"the host's vhost-vsock refused the queues: {error.strerror}")

    def on_kick(self, queue: ActiveQueue) -> None:
        """Room for events, which there are none of; or one of the kernel's queues came up late."""
        if queue.index < len(self._rings):
            self._run()

    def on_queue_stop(self, queue: ActiveQueue) -> None:
        """The driver took one of the queues away: both stop."""
        if queue.index < len(self._rings):
            self._halt()
            queue.offloaded = False  # so that we hear of it when it comes back

    def _halt(self) -> None:
        try:
            self._vhost.set_running(False)
        except OSError:  # it was not running
            pass
        for ring in self._rings:
            ring.release()

    def stop(self) -> None:
        """The kernel is done with guest memory when this returns."""
        self._halt()
        for ring in self._rings:
            ring.close()
        self._rings = ()
        self._session = None

    def quiesce(self) -> None:
        """See VirtioDevice."""
        with self.lock:
            if self._rings:
                self._halt()

    def go_on(self) -> None:
        """See VirtioDevice."""
        with self.lock:
            if self._rings:
                self._run()

    def close(self) -> None:
        """Give the address back."""
        self._vhost.close()
