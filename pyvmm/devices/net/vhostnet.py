# SPDX-License-Identifier: Apache-2.0
"""vhost-net: the host's kernel moves the frames of a pair of virtio-net queues to and from a tap queue."""

from __future__ import annotations

import struct

from pyvmm.devices.vhost.kernel import Vhost, VhostRing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.virtio.session import ActiveQueue, Session

NODE = "/dev/vhost-net"
NET_SET_BACKEND = 0x4008_AF30
_BACKEND = struct.Struct("=Ii")  # ring, descriptor of the tap queue; -1 for none


class VhostNet(Vhost):
    """One open /dev/vhost-net: rings 0 (receive) and 1 (transmit) of a pair."""

    def set_backend(self, index: int, fd: int) -> None:
        """Start the ring on a tap queue, or stop it with -1."""
        self._set(NET_SET_BACKEND, _BACKEND.pack(index, fd))


class VhostPair:
    """A queue pair that the kernel works, for one session. With the device's lock held."""

    def __init__(
        self, session: Session, vhost: VhostNet, tap_fd: int, rx: ActiveQueue, tx: ActiveQueue, up: bool
    ) -> None:
        self._session = session
        self._vhost = vhost
        self._tap_fd = tap_fd
        self._up = up
        self._paused = True
        self._quiet = False
        self._rings = (VhostRing(vhost, 0, session, rx), VhostRing(vhost, 1, session, tx))

    def start(self) -> None:
        """Hand the queues that the driver set up to the kernel, or go on after ``pause``."""
        self._paused = False
        try:
            self._vhost.set_features(self._session.features)
            self._vhost.set_memory(self._session.memory)
        except OSError as error:
            self._refused(error)
            return
        self._run()

    def pause(self) -> None:
        """Leave the tap alone. The queues know how far the kernel came."""
        self._paused = True
        self._halt()

    def quiesce(self) -> None:
        """The machine is paused: the kernel leaves the rings alone until ``go_on``."""
        self._quiet = True
        self._halt()

    def go_on(self) -> None:
        """The kernel works the rings again, from where it was, and looks for what came meanwhile."""
        self._quiet = False
        self._run()

    def kick(self, queue: ActiveQueue) -> None:
        """The driver brought a queue up that the kernel does not work yet."""
        del queue
        self._run()

    def _run(self) -> None:
        """Let the kernel work every queue there is, while the link is up."""
        if self._paused or self._quiet or not self._up:
            return
        try:
            for index, ring in enumerate(self._rings):
                if not ring.prepared and ring.prepare():
                    self._vhost.set_backend(index, self._tap_fd)
                    ring.kick()
        except OSError as error:
            self._refused(error)

    def _halt(self) -> None:
        for index, ring in enumerate(self._rings):
            if ring.prepared:
                self._detach(index)
                ring.release()

    def _refused(self, error: OSError) -> None:
        self._session.fail(f"the host's vhost-net refused the queues: {error.strerror}")

    def stop_queue(self, queue: ActiveQueue) -> None:
        """The driver resets this queue."""
        for index, ring in enumerate(self._rings):
            if ring.queue is queue:
                if ring.prepared:
                    self._detach(index)
                    ring.release()
                queue.offloaded = False  # so that we hear of it when it comes back

    def _detach(self, index: int) -> None:
        try:
            self._vhost.set_backend(index, -1)
        except OSError:  # it was not attached
            pass

    def set_link(self, up: bool) -> None:
        """Stop moving frames, or go on."""
        self._up = up
        self._halt()
        self._run()

    def stop(self) -> None:
        """The kernel is done with guest memory when this returns."""
        self._halt()
        for ring in self._rings:
            ring.close()


def open_vhost_net(what: str, count: int, node: str = NODE) -> list[VhostNet]:
    """One for each of ``count`` pairs. Raises ConfigError with a sentence that says what to do."""
    opened: list[VhostNet] = []
    try:
        for _ in range(count):
            opened += [VhostNet.open(what, node, "vhost_net")]
    except BaseException:
        for vhost in opened:
            vhost.close()
        raise
    return opened
