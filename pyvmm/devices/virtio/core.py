# SPDX-License-Identifier: Apache-2.0
"""What all transports of a virtio device share: feature negotiation, status, queues, reset.

What follows from DRIVER_OK is in ``activation``, and imported then; what is saved is in ``corestate``.

Follows virtio 1.2, sections 2.1 to 2.6 and 3.1. A transport is a register map whose handlers call in here,
with the device's lock held. ``write_status`` and ``write_queue_reset`` return what the transport's write has
to return: waiting for host I/O in flight, which must not happen under the lock.

A driver that breaks the rules gets DEVICE_NEEDS_RESET when it broke a ring, and is ignored and counted in
``odd`` when it wrote a register at the wrong time.
"""

from __future__ import annotations

import os

from pyvmm.devices.virtio import bits
from pyvmm.devices.virtio.queueregs import QueueRegisters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from pyvmm.devices.base import Doorbell
    from pyvmm.devices.virtio.device import Services, VirtioDevice
    from pyvmm.devices.virtio.session import ActiveQueue, Session
    from pyvmm.memory import GuestMemory
    from pyvmm.mmio.regs import State
    from pyvmm.ring import Ring

    After = Callable[[], None] | None

    class Interrupts(Protocol):
        """How a transport interrupts the driver. Called with the device's lock held."""

        def queue_interrupt(self, index: int, /) -> None:
            """Queue ``index`` has used buffers."""

        def config_interrupt(self) -> None:
            """The configuration space or the status changed."""

        def queue_line(self, index: int, /) -> int | None:
            """The eventfd that interrupts for this queue without us, or None."""


_DRIVER_BITS = bits.ACKNOWLEDGE | bits.DRIVER | bits.DRIVER_OK | bits.FEATURES_OK | bits.FAILED
_LOW = 0xFFFF_FFFF
_WORDS = 2  # of 32 feature bits


class VirtioCore:
    """One device behind one transport, whose ``interrupts`` reach the driver.

    ``doorbells`` has one entry a queue; ``lock`` is the device's and the transport's. ``broken`` says what
    the driver did when DEVICE_NEEDS_RESET is set.
    """

    def __init__(
        self,
        device: VirtioDevice,
        interrupts: Interrupts,
        memory: GuestMemory,
        ring: Ring,
        services: Services,
        doorbells: Sequence[Doorbell],
    ) -> None:
        self.device = device
        self.lock = device.lock
        self.odd = 0
        self.broken = ""
        self.registers = [QueueRegisters(size) for size in device.queue_sizes]
        self._none = QueueRegisters(0)
        # For ``activation`` and ``corestate``, which are parts of this, and for nobody else:
        self.interrupts = interrupts
        self.memory = memory
        self.ring = ring
        self.services = services
        self.doorbells = doorbells
        self.calls: dict[int, int] = {}  # queue index -> eventfd of an offloaded queue without a line
        self.session: Session | None = None

        device.listen(self._config_changed)
        self._clear()

    def _clear(self) -> None:
        self.status = 0
        self.device_feature_select = 0
        self.driver_feature_select = 0
        self.driver_features = 0
        self.queue_select = 0
        self.generation = 0
        self.broken = ""
        for queue in self.registers:
            queue.reset()

    # Features

    @property
    def offered(self) -> int:
        """Every feature bit the driver may choose from."""
        return (self.device.offered() | bits.TRANSPORT_FEATURES) & ~self.device.withheld

    def read_device_features(self) -> int:
        """The selected 32 of the bits on offer."""
        return self.offered >> 32 * self.device_feature_select & _LOW if self._word_ok(True) else 0

    def read_driver_features(self) -> int:
        """The selected 32 of the driver's bits."""
        return self.driver_features >> 32 * self.driver_feature_select & _LOW if self._word_ok(False) else 0

    def write_driver_features(self, value: int) -> None:
        """Set the selected 32 of the driver's bits; not any more once they were accepted."""
        if self.status & bits.FEATURES_OK or not self._word_ok(False):
            self.odd += 1
            return
        shift = 32 * self.driver_feature_select
        self.driver_features = self.driver_features & ~(_LOW << shift) | value << shift

    def _word_ok(self, device: bool) -> bool:
        select = self.device_feature_select if device else self.driver_feature_select
        return select < _WORDS

    # Status

    def write_status(self, value: int) -> After:
        """The driver's step in section 3.1.1, or a reset."""
        if value == 0:
            return self.reset()
        fresh = value & _DRIVER_BITS & ~self.status
        if fresh & bits.FEATURES_OK and not self._features_acceptable():
            fresh &= ~bits.FEATURES_OK
        self.status |= fresh & ~bits.DRIVER_OK
        if fresh & bits.DRIVER_OK:
            if not self.status & bits.FEATURES_OK or self.status & bits.NEEDS_RESET:
                self.odd += 1
            else:
                self.status |= bits.DRIVER_OK
                self.activate()
        return None

    def _features_acceptable(self) -> bool:
        features = self.driver_features
        return (
            not features & ~self.offered
            and bits.has(features, bits.F_VERSION_1)
            and self.device.acceptable(features)
        )

    def reset(self) -> After:
        """Back to power-on. Returns what must be waited for before the driver may reuse its memory."""
        session, self.session = self.session, None
        if session is not None and session.alive and session.handed_over:
            session.enter(self.device.finish)
        self._clear()
        self.device.reset()
        if session is None:
            return None
        session.end()
        if session.handed_over:
            session.enter(self.device.stop)
        self._drop_calls()
        for queue in session.queues:
            self._close_ring(queue)
        return session.drain

    @staticmethod
    def _close_ring(queue: ActiveQueue) -> None:
        """Let go of guest memory at once: a machine's reset waits for nobody, and may be its end."""
        if queue.ring is not None:
            queue.ring.close()
            queue.ring = None

    # Queues

    @property
    def selected(self) -> QueueRegisters:
        """Registers of the selected queue; of an empty one when there is no such queue."""
        if self.queue_select < len(self.registers):
            return self.registers[self.queue_select]
        self._none.reset()
        return self._none

    def set_queue(self, name: str, value: int) -> None:
        """Write ``size``, or 32 bits of an address, of the selected queue while it is disabled."""
        queue = self.selected
        if queue is self._none or queue.enabled:
            self.odd += 1
        else:
            setattr(queue, name, value)

    def queue_address(self, name: str, half: int) -> int:
        """One half (0 low, 1 high) of an area's address."""
        address: int = getattr(self.selected, name)
        return address >> 32 * half & _LOW

    def set_queue_address(self, name: str, half: int, value: int) -> None:
        """Write one half of an area's address."""
        shift = 32 * half
        self.set_queue(name, getattr(self.selected, name) & ~(_LOW << shift) | value << shift)

    def enable_queue(self) -> None:
        """The driver finished setting the selected queue up."""
        queue = self.selected
        if queue is self._none or queue.enabled or not 0 < queue.size <= queue.largest:
            self.odd += 1
            return
        queue.enabled = True
        session = self.session
        if session is not None and session.alive:  # it comes back after a reset of its own
            from pyvmm.devices.virtio import activation

            active = session.queues[self.queue_select]
            session.enter(activation.make_ring, self, active)
            if session.alive and active.ring is not None and not active.offloaded:
                session.kick(active)

    def disable_queue(self) -> After:
        """Queue reset (section 2.6.1), also what virtio-mmio's QueueReady = 0 asks for."""
        queue = self.selected
        if queue is self._none or not queue.enabled:
            return None
        index = self.queue_select
        queue.reset()
        session = self.session
        if session is None:
            return None
        active = session.queues[index]
        ring, active.ring = active.ring, None
        active.forget_chains()
        if session.handed_over:
            session.enter(self.device.on_queue_stop, active)
        if ring is not None:
            ring.close()
        return session.drain

    def notify(self, index: int) -> None:
        """A doorbell that the kernel did not catch. On a vCPU's thread."""
        session = self.session
        if session is None or index >= len(session.queues):
            self.odd += 1
        elif index not in self.device.at_once:
            os.eventfd_write(session.queues[index].kick_fd, 1)
        elif session.alive:
            session.enter(self.kicked, session.queues[index])

    def place_doorbells(self, where: Callable[[int], int | None]) -> None:
        """Have the kernel catch the stores that notify; ``where`` gives the address for a queue."""
        for index, doorbell in enumerate(self.doorbells):
            if index not in self.device.at_once:
                doorbell.place(where(index))

    def activate(self, positions: Sequence[dict[str, int]] | None = None) -> None:
        """Begin a session. ``positions``: where each queue stands, which begins anew otherwise."""
        from pyvmm.devices.virtio import activation

        activation.begin(self, positions)

    def kicked(self, queue: ActiveQueue) -> None:
        """The driver put something into ``queue``. Inside the session."""
        if queue.ring is not None:
            self.device.on_kick(queue)

    def _drop_calls(self) -> None:
        """Close the eventfds we listened to. After the session ended and the device stopped."""
        for fd in self.calls.values():
            os.close(fd)
        self.calls.clear()

    def fail(self, reason: str) -> None:
        """The driver broke the rules. Called by the session, which ends."""
        self.broken = reason
        self.status |= bits.NEEDS_RESET
        if self.status & bits.DRIVER_OK:
            self.interrupts.config_interrupt()

    def _config_changed(self) -> None:
        self.generation = self.generation + 1 & 0xFF
        if self.status & bits.DRIVER_OK:
            self.interrupts.config_interrupt()

    def close(self) -> None:
        """End the device's life with the machine's. Without the lock."""
        with self.lock:
            after = self.reset()
        if after is not None:
            after()
        self.device.close()

    def describe_queues(self) -> list[dict[str, int | bool]]:
        """Where every queue is, and how it is doing. Call with the lock held."""
        found: list[dict[str, int | bool]] = []
        active = self.session.queues if self.session is not None else ()
        for index, queue in enumerate(self.registers):
            entry: dict[str, int | bool] = {name: getattr(queue, name) for name in QueueRegisters.NAMES}
            if index < len(active):
                entry |= {"in_flight": active[index].in_flight, "offloaded": active[index].offloaded}
            found.append(entry)
        return found

    #: The plain numbers in ``state()``, attributes by the same names.
    NUMBERS = (
        "status",
        "device_feature_select",
        "driver_feature_select",
        "driver_features",
        "queue_select",
        "generation",
    )
    #: The names in ``state()``.
    STATE = (*NUMBERS, "queues", "rings", "device")

    def state(self) -> State:
        """Everything the driver set, as plain data. Call with the lock held and no chain in flight.

        What a kernel half works has to be stopped before: only then is it known how far it came. Of a device
        that needs a reset there are no rings, since a reset is all that can come.
        """
        from pyvmm.devices.virtio import corestate

        return corestate.saved(self)

    def load_state(self, state: State) -> None:
        """Go on from where ``state()`` was taken, with the same guest memory. Call with the lock held.

        A session that there is ends as by ``reset``. Every queue is looked at: notifications are no state.
        Raises ConfigError, and leaves the device reset, when the state is another device's or damaged.
        """
        from pyvmm.devices.virtio import corestate

        corestate.load(self, state)
