# SPDX-License-Identifier: Apache-2.0
"""A virtio device under a driver, without a transport, KVM or threads."""

from __future__ import annotations

import os

from fakes.driver import FakeDriver
from fakes.loop import FakeLoop, FakeWorkers

from pyvmm.devices.virtio import bits
from pyvmm.devices.virtio.core import VirtioCore
from pyvmm.devices.virtio.device import Services
from pyvmm.memory import GuestMemory
from pyvmm.ring import Ring

RAM = 0x8000_0000


class FakeDoorbell:
    """A Doorbell. ``address`` is where it is."""

    def __init__(self, size: int = 4, value: int | None = None) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.size = size
        self.value = value
        self.address: int | None = None
        self.closed = False

    def place(self, address: int | None) -> None:
        self.address = address

    def close(self) -> None:
        if not self.closed:
            os.close(self.fd)
        self.closed = True


class RecordingInterrupts:
    """What a transport would send: ``queues`` counts by index, ``config`` counts."""

    def __init__(self) -> None:
        self.queues: dict[int, int] = {}
        self.config = 0

    def queue_interrupt(self, index: int) -> None:
        self.queues[index] = self.queues.get(index, 0) + 1

    def config_interrupt(self) -> None:
        self.config += 1

    def queue_line(self, index: int) -> int | None:
        return None


class Rig:
    """A device, the transport's core, guest memory, and a fake driver for every queue.

    ``start`` negotiates and activates; ``kick(i)`` notifies queue ``i`` and runs the loop. A device that was
    made with services of its own gets them here: ``Rig.services()`` before, ``services=`` then.
    Use it as a context manager: it closes the device and everything else.
    """

    def __init__(
        self,
        device,
        *,
        packed: bool = False,
        event_idx: bool = False,
        size: int = 16,
        memory: GuestMemory | None = None,
        services: Services | None = None,
        ring_bytes: int = 0x4000,
        backend: str | None = None,
    ) -> None:
        self.device = device
        self.packed = packed
        self.services = services or make_services()
        self.loop: FakeLoop = self.services.loop
        self.workers: FakeWorkers = self.services.workers
        self.memory = memory or GuestMemory()
        if memory is None:
            self.memory.add(RAM, 4 << 20)
        self.interrupts = RecordingInterrupts()
        self.doorbells = [FakeDoorbell() for _ in device.queue_sizes]
        self.core = VirtioCore(
            device, self.interrupts, self.memory, Ring(backend), self.services, self.doorbells
        )
        # Rings and buffers of queue i live in a part of memory of its own.
        self.drivers = [
            FakeDriver(
                self.memory,
                packed=packed,
                event_idx=event_idx,
                size=min(size, largest),
                base=RAM + 0x4_0000 * index,
            )
            for index, largest in enumerate(device.queue_sizes)
        ]

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *exc: object) -> None:
        self.workers.held = False
        self.workers.release()
        self.core.close()
        for doorbell in self.doorbells:
            doorbell.close()
        self.drivers = []
        self.memory.close()

    def start(self, features: int | None = None, *, queues: list[int] | None = None) -> None:
        """Bring the device up as a driver does; ``features`` of the device's own bits, all by default."""
        core = self.core
        with core.lock:
            core.write_status(bits.ACKNOWLEDGE)
            core.write_status(bits.ACKNOWLEDGE | bits.DRIVER)
            own = self.device.offered() if features is None else features
            wanted = own | 1 << bits.F_VERSION_1 | self.drivers_features()
            core.driver_features = wanted & core.offered
            core.write_status(bits.ACKNOWLEDGE | bits.DRIVER | bits.FEATURES_OK)
            assert core.status & bits.FEATURES_OK, "the device refused the features"
            for index, driver in enumerate(self.drivers):
                if queues is None or index in queues:
                    setup = driver.setup
                    core.queue_select = index
                    core.set_queue("size", setup.size)
                    core.set_queue("desc", setup.desc)
                    core.set_queue("driver", setup.driver)
                    core.set_queue("device", setup.device)
                    core.enable_queue()
            core.write_status(core.status | bits.DRIVER_OK)
        self.loop.run()

    def drivers_features(self) -> int:
        """Ring features as the fake drivers were set up."""
        setup = self.drivers[0].setup if self.drivers else None
        word = 0
        if setup is not None:
            word |= setup.event_idx << bits.F_EVENT_IDX
            word |= setup.indirect << bits.F_INDIRECT_DESC
            word |= setup.packed << bits.F_RING_PACKED
        return word

    def kick(self, index: int = 0) -> None:
        """The driver notifies queue ``index``; everything that follows happens."""
        os.eventfd_write(self.doorbells[index].fd, 1)
        self.loop.run()

    def reset(self) -> None:
        """The driver resets the device."""
        with self.core.lock:
            after = self.core.write_status(0)
        if after is not None:
            after()
        self.loop.run()

    @property
    def broken(self) -> str:
        """Why the device needs a reset; empty when it does not."""
        return self.core.broken


def make_services() -> Services:
    """A loop and workers for tests."""
    return Services(FakeLoop(), FakeWorkers())
