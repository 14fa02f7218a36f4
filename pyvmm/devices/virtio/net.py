# SPDX-License-Identifier: Apache-2.0
"""virtio-net (virtio 1.2, section 5.1): a network card.

Its other end is a tap interface of the host, or passt (user mode). The queues of a tap are worked by the
host's kernel (vhost-net) where it can, else here.
"""

from __future__ import annotations

from pyvmm.devices.net import bits as netbits
from pyvmm.devices.net import control as netctl
from pyvmm.devices.net import ends
from pyvmm.devices.net.ends import SETTINGS, mac_of, mtu_of, open_end
from pyvmm.devices.net.pair import Counters, Pair
from pyvmm.devices.virtio import bits
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.errors import ConfigError
from pyvmm.mmio.regs import Bit, Reg, RegArray

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from pyvmm.devices.net.ends import HostEnd
    from pyvmm.devices.net.vhostnet import VhostNet
    from pyvmm.devices.settings import Settings
    from pyvmm.devices.virtio.device import Services
    from pyvmm.devices.virtio.session import ActiveQueue, Session
    from pyvmm.mmio.regs import State

    class PairWorker(Protocol):
        """Who works a queue pair during a session."""

        def start(self) -> None:
            """Begin, or go on after ``pause``."""

        def pause(self) -> None:
            """Leave the port alone. The driver's buffers stay where they are."""

        def quiesce(self) -> None:
            """The machine is paused: nobody touches the rings until ``go_on``."""

        def go_on(self) -> None:
            """The end of ``quiesce``."""

        def kick(self, queue: ActiveQueue) -> None:
            """The driver put something into one of the two."""

        def stop_queue(self, queue: ActiveQueue) -> None:
            """The driver resets one of the two."""

        def set_link(self, up: bool) -> None:
            """Move frames, or drop them."""

        def stop(self) -> None:
            """The session is over."""


QUEUE_SIZE, CONTROL_QUEUE_SIZE = 256, 64
_AS_NEGOTIATED = -1  # in the place of the offloads that the driver chose


class Net(VirtioDevice):
    """The card. ``mac`` is its address of 6 bytes; ``vhosts`` one for each port of ``end``, or none.

    Queues: receive and transmit of every pair, then control. What a hostile guest can do: see net.pair and
    net.control; with vhost-net, break its own rings. It can send any frame, from any address, as on a cable.
    """

    NAME = "net"
    SIZE = 12
    DEVICE_ID = 1
    SETTINGS = SETTINGS
    POSITIONAL = ("mode",)
    STATE = ("_active_pairs", "_offloads")

    MAC = RegArray(0, 8, count=6, access="r")
    STATUS = Reg(6, 16, access="r", fields={"link_up": Bit(0), "announce": Bit(1)}, sizes=(1, 2))
    MAX_VIRTQUEUE_PAIRS = Reg(8, 16, access="r", sizes=(1, 2))
    MTU = Reg(10, 16, access="r", sizes=(1, 2))

    def __init__(
        self,
        end: HostEnd,
        mac: bytes,
        *,
        vhosts: Sequence[VhostNet] = (),
        mtu: int | None = None,
        link: bool = True,
    ) -> None:
        self.largest_pairs = len(end.ports)
        super().__init__((QUEUE_SIZE,) * 2 * self.largest_pairs + (CONTROL_QUEUE_SIZE,))
        self.end = end
        self.vhosts = vhosts
        self.counters = Counters()
        self._mac = mac
        self._mtu = mtu
        self._link = link
        self._session: Session | None = None
        self._workers: list[PairWorker] = []
        if vhosts:
            self.withheld = vhosts[0].withheld
        end.set_link(link)
        self.reset()

    def reset(self) -> None:
        """Power-on values; the link stays as it is."""
        super().reset()
        self.MAC = list(self._mac)
        self.MAX_VIRTQUEUE_PAIRS = self.largest_pairs
        self.MTU = self._mtu or 0
        self._active_pairs = 1
        self._offloads = _AS_NEGOTIATED
        self._show_link()

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Raise ConfigError for settings that do not go together."""
        ends.check(settings)

    @classmethod
    def open(cls, settings: Settings, services: Services) -> Net:
        """The card that the user asked for. Raises ConfigError and HostError."""
        del services
        end, vhosts = open_end(settings)
        mac = mac_of(settings, end.name)
        link = settings.text("link") == "on"
        return cls(end, mac, vhosts=vhosts, mtu=mtu_of(settings), link=link)

    @property
    def up(self) -> bool:
        """Whether the driver sees a link."""
        return self._link and not self.counters.lost

    def _show_link(self) -> None:
        self.STATUS = netbits.LINK_UP if self.up else 0

    def offered(self) -> int:
        """What the host's end can, and what every card has."""
        features = self.end.features | bits.feature_set(
            netbits.MAC, netbits.STATUS, netbits.MRG_RXBUF, netbits.CTRL_VQ, netbits.CTRL_MAC_ADDR
        )
        if self._mtu is not None:
            features |= 1 << netbits.MTU
        if self.largest_pairs > 1:
            features |= 1 << netbits.MQ
        if self.vhosts and not bits.has(self.vhosts[0].features, netbits.MRG_RXBUF):
            features &= ~(1 << netbits.MRG_RXBUF)
        return features

    def acceptable(self, features: int) -> bool:
        """Features that need others have them (5.1.3.1)."""
        return netbits.consistent(features)

    def load_state(self, state: State) -> None:
        """See RegisterDevice. The pairs in use have to be there."""
        pairs = state.get("_active_pairs")
        if isinstance(pairs, int) and not 1 <= pairs <= self.largest_pairs:
            raise ConfigError(f"The saved state of {self.NAME} is damaged: {pairs} queue pairs are in use.")
        super().load_state(state)

    # A session

    def activate(self, session: Session) -> None:
        """Connect the driver's queues with the ports, or hand them to the kernel."""
        self._session = session
        # A driver without MQ has its control queue where the second pair would be (5.1.2).
        pairs = self.largest_pairs if bits.has(session.features, netbits.MQ) else 1
        self._active_pairs = min(self._active_pairs, pairs)
        self._workers = [self._worker(session, index) for index in range(pairs)]
        offloads = session.features if self._offloads == _AS_NEGOTIATED else self._offloads
        try:
            self.end.set_offloads(offloads & netbits.GUEST_OFFLOADS)
            self.end.set_pairs(self._active_pairs)
        except OSError as error:
            session.fail(f"the host refused the negotiated offloads: {error.strerror}")
            return
        for worker in self._workers[: self._active_pairs]:
            worker.start()

    def _worker(self, session: Session, index: int) -> PairWorker:
        rx, tx = session.queues[2 * index : 2 * index + 2]
        port = self.end.ports[index]
        if self.vhosts:
            from pyvmm.devices.net.vhostnet import VhostPair

            return VhostPair(session, self.vhosts[index], port.fd, rx, tx, up=self.up)
        return Pair(
            session,
            port,
            rx,
            tx,
            mergeable=bits.has(session.features, netbits.MRG_RXBUF),
            up=self.up,
            counters=self.counters,
            on_lost=self._lost,
        )

    def _control_index(self, session: Session) -> int:
        """Where the control queue is: a driver without MQ knows one pair only (5.1.2)."""
        return 2 * self.largest_pairs if bits.has(session.features, netbits.MQ) else 2

    def on_kick(self, queue: ActiveQueue) -> None:
        """Frames, room for frames, or commands."""
        session = self._session
        if session is None:
            return
        if queue.index == self._control_index(session):
            netctl.work_queue(queue, session.features, self)
        elif queue.index // 2 < self._active_pairs:
            self._workers[queue.index // 2].kick(queue)

    def on_queue_stop(self, queue: ActiveQueue) -> None:
        """One queue is reset."""
        if queue.index // 2 < len(self._workers):
            self._workers[queue.index // 2].stop_queue(queue)

    def stop(self) -> None:
        """Nobody touches guest memory any more when this returns."""
        for worker in self._workers:
            worker.stop()
        self._workers = []
        self._session = None

    def quiesce(self) -> None:
        """See VirtioDevice."""
        with self.lock:
            for worker in self._workers:
                worker.quiesce()

    def go_on(self) -> None:
        """See VirtioDevice."""
        with self.lock:
            for worker in self._workers:
                worker.go_on()

    # Commands of the driver

    def set_pairs(self, count: int) -> None:
        """Use so many queue pairs. Raises OSError: it uses as many as before."""
        for worker in self._workers[count : self._active_pairs]:
            worker.pause()
        try:
            self.end.set_pairs(count)
        except OSError:
            self._keep_pairs(count)
            raise
        before, self._active_pairs = self._active_pairs, count
        for worker in self._workers[before:count]:
            worker.start()

    def _keep_pairs(self, refused: int) -> None:
        """Go on with the pairs there were: the host may have refused half way."""
        try:
            self.end.set_pairs(self._active_pairs)
        except OSError:  # then those it still has go on
            pass
        for worker in self._workers[refused : self._active_pairs]:
            worker.start()

    def set_offloads(self, offloads: int) -> None:
        """Take frames with these GUEST feature bits. Raises OSError."""
        self.end.set_offloads(offloads)
        self._offloads = offloads

    def set_mac(self, mac: bytes) -> None:
        """The driver's choice, until it resets the device."""
        self.MAC = list(mac)

    # The cable

    def set_link(self, up: bool) -> None:
        """Plug the cable in, or pull it. While it is out, frames are dropped. Callable from any thread.

        On a closed card there is none.
        """
        with self.lock:
            if not self.end.ports:
                return
            self._link = up
            self.end.set_link(up)
            self._link_changed()

    def _link_changed(self) -> None:
        before = self.STATUS
        self._show_link()
        if before != self.STATUS:
            for worker in self._workers:
                worker.set_link(self.up)
            self.config_changed()

    def _lost(self) -> None:
        """The host's end is gone, for good: to the driver that is a cable pulled out."""
        self._link_changed()

    def close(self) -> None:
        """Give the kernel's half and the host's end back."""
        for vhost in self.vhosts:
            vhost.close()
        with self.lock:  # set_link may be at it
            self.end.close()
