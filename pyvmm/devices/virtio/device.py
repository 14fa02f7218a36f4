# SPDX-License-Identifier: Apache-2.0
"""What every virtio device model is: its configuration space, its queues, and its life under a driver.

A device knows nothing of transports. It is handed a :class:`~pyvmm.devices.virtio.session.Session` when the
driver is ready, and has to forget it when the driver resets the device.
"""

from __future__ import annotations

from pyvmm.mmio.regs import RegisterDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ClassVar

    from pyvmm.devices.base import Loop, Workers
    from pyvmm.devices.settings import Setting, Settings
    from pyvmm.devices.virtio.session import ActiveQueue, Session

    After = Callable[[], None] | None


def _nobody_listens() -> None:
    """No transport is attached yet."""


class Services:
    """What the machine lends to a device: the I/O thread and the worker threads."""

    __slots__ = ("loop", "workers")

    def __init__(self, loop: Loop, workers: Workers) -> None:
        self.loop = loop
        self.workers = workers


class VirtioDevice(RegisterDevice):
    """Base of device models. The declared registers are the device-specific configuration space.

    A subclass sets NAME, SIZE (bytes of configuration space, 0 for none) and DEVICE_ID, and overrides what
    it needs of the methods below. ``lock`` is shared with the transport, which calls everything but
    ``quiesce``, ``go_on`` and ``close`` with it held.
    """

    SIZE = 0
    DEVICE_ID: ClassVar[int]
    #: What a user may say about the device, and which of it as bare leading words.
    SETTINGS: ClassVar[dict[str, Setting]] = {}
    POSITIONAL: ClassVar[tuple[str, ...]] = ()
    #: Another process serves the device and maps the guest's memory, which then has a descriptor.
    SHARED_MEMORY: ClassVar[bool] = False

    def __init__(self, queue_sizes: tuple[int, ...], **counts: int) -> None:
        """``queue_sizes``: the largest size of every queue, in queue order; powers of two up to 32768."""
        super().__init__(**counts)
        self.queue_sizes = queue_sizes
        #: Queues whose notifications exit, and are worked on the vCPU's thread: for drivers that spin until
        #: they are, to which the I/O thread would always be late. ``on_kick`` must not block for them. The
        #: interrupts for them may come late, see ``pacing``.
        self.at_once: tuple[int, ...] = ()
        #: Bits of the driver or device area this device has no use for: never offered to the driver.
        self.withheld = 0
        self._on_config_change: Callable[[], None] = _nobody_listens

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Find the user's mistakes that show without a RISC-V host, such as the name of a file.

        For machines that run their guests in the lab: before one is started for nothing. Raises ConfigError.
        """

    @classmethod
    def open(cls, settings: Settings, services: Services) -> VirtioDevice:
        """Make the device the user asked for. Raises ConfigError for what the user can mend, HostError."""
        raise NotImplementedError

    def offered(self) -> int:
        """The device's own feature bits that it offers (not those of rings and transports)."""
        return 0

    def acceptable(self, features: int) -> bool:
        """Whether the device can work with this subset of what it offered."""
        del features
        return True

    def activate(self, session: Session) -> None:
        """The driver is ready: ``session`` has memory and queues. On a vCPU's thread: must not block."""

    def on_kick(self, queue: ActiveQueue) -> None:
        """The driver put something into ``queue``. On the loop's thread, but for those ``at_once``."""

    def on_queue_stop(self, queue: ActiveQueue) -> None:
        """``queue`` alone is reset: drop every chain of it. It may come back later."""

    def finish(self) -> None:
        """The session is about to end: do now what the driver handed over and will not wait for."""

    def stop(self) -> None:
        """The session is over: drop it and every chain. Host I/O in flight is waited for by the transport."""

    def quiesce(self) -> None:
        """The machine is paused: stop what works the queues outside of this process, until ``go_on``.

        Called without the lock. No vCPU runs, no callback comes, and no worker is busy.
        """

    def go_on(self) -> None:
        """The end of ``quiesce``. What the driver notified meanwhile must not be lost."""

    def close(self) -> None:
        """Give back what the host gave (files, descriptors, processes). The machine is ending."""

    # For the device

    def config_changed(self) -> None:
        """Tell the driver that the configuration space changed. Call with the lock held."""
        self._on_config_change()

    # For the transport

    def listen(self, on_config_change: Callable[[], None]) -> None:
        """Say who hears of a changed configuration space."""
        self._on_config_change = on_config_change
