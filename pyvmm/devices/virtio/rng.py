# SPDX-License-Identifier: Apache-2.0
"""virtio-rng: random bytes from the host's kernel (virtio 1.2, section 5.4).

What a hostile guest can do: ask for as much as it likes. It gets 64 KiB, a fraction of a millisecond's work,
before other devices have their turn, and no more than ``rate`` in a second, resets or not.
"""

from __future__ import annotations

import os

from pyvmm.devices.settings import Setting, size
from pyvmm.devices.virtio.chain import scatter, total
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pyvmm.devices.base import Timer
    from pyvmm.devices.settings import Settings
    from pyvmm.devices.virtio.device import Services
    from pyvmm.devices.virtio.session import ActiveQueue, Session

_QUEUE_SIZE = 64
_AT_ONCE = 64 << 10  # bytes
_PERIOD = 1.0  # seconds


class Rng(VirtioDevice):
    """One queue of buffers to fill. ``rate`` is in bytes a second, 0 for no limit.

    Under its lock it calls only the loop, whose locks are leaves.
    """

    NAME = "rng"
    DEVICE_ID = 4
    SETTINGS: ClassVar[dict[str, Setting]] = {"rate": size("bytes a second at most, such as 1M")}
    STATE = ("_left",)

    def __init__(self, rate: int = 0) -> None:
        super().__init__((_QUEUE_SIZE,))
        self._rate = rate
        self._left = rate  # of this period
        self._timer: Timer | None = None  # the end of this period
        self._session: Session | None = None

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Raise ConfigError for a rate at which nothing would come."""
        if settings.number("rate") == 0:
            raise ConfigError(f"{settings.what}: a rate of 0 would give nothing; leave it out for no limit.")

    @classmethod
    def open(cls, settings: Settings, services: Services) -> Rng:
        """The device the user asked for. Raises ConfigError."""
        del services
        cls.check(settings)
        os.getrandom(1)  # waits until the kernel has some, which is never again
        return cls(settings.number("rate") or 0)

    def activate(self, session: Session) -> None:
        """The driver is ready. What the last session spent of this period stays spent."""
        self._session = session
        if self._left < self._rate:
            self._timer = session.call_later(_PERIOD, self._refill)

    def stop(self) -> None:
        """The session is over."""
        self._session = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def on_kick(self, queue: ActiveQueue) -> None:
        """Fill what there is. What is too much for now waits in the ring, for its turn or the next period."""
        session = self._session
        room = min(_AT_ONCE, self._left) if self._rate else _AT_ONCE
        if session is None or not room:
            return
        for chain in queue.chains():
            given = scatter(chain.writable, os.getrandom(min(room, total(chain.writable))))
            queue.complete(chain, given)
            room -= given
            self._spend(session, given)
            if not room:
                session.kick(queue)
                return

    def _spend(self, session: Session, count: int) -> None:
        if self._rate:
            self._left -= count
            if self._timer is None:
                self._timer = session.call_later(_PERIOD, self._refill)

    def _refill(self) -> None:
        self._timer = None
        self._left = self._rate
        if self._session is not None:
            for queue in self._session.queues:
                self.on_kick(queue)
