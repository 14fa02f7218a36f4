# SPDX-License-Identifier: Apache-2.0
"""A machine whose guest attacks its devices: some under attack, and a bystander that must not notice.

Everything follows from one number, the seed of ``rng``. Nothing has threads (but a back end that only answers
messages): workers do their jobs when ``run`` lets them, or while a reset waits for them.
"""

from __future__ import annotations

import ctypes
import os

from fakes.driver import FakeDriver
from fakes.echo import Echo
from fakes.lines import RecordingLine
from fakes.loop import FakeLoop, FakeWorkers
from fakes.pci import ECAM, HIGH, LOW, PciBus
from fakes.transports import MMIO_BASE, OnMmio, OnPci

from pyvmm.devices.edu import Edu
from pyvmm.devices.virtio import bits
from pyvmm.devices.virtio.device import Services
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.devices.virtio.pci import VirtioPci
from pyvmm.devices.virtio.session import Session
from pyvmm.memory import ANONYMOUS, DEVICE, MEMFD, READ_ONLY, GuestMemory
from pyvmm.mmio.bus import Bus
from pyvmm.ring import Ring

PAGE = 4096
BASE, SEAM = 0x8000_0000, 0x8004_0000  # two banks of RAM that meet
END = 0x8008_0000
ROM = 0x8040_0000  # a page of read-only memory, then one of device memory
SAFE, SAFE_SIZE = 1 << 45, 1 << 16  # RAM that the attacker never names; a balloon cannot either
SPAN = 0x8000  # bytes of a queue and its buffers
GUARD = PAGE  # bytes of host memory on either side of a bank that are looked at
PATTERN = b"\xc5"
EDU = LOW + 0x800_0000


class EventLine:
    """An MsiLine with a real eventfd and no memory of what it delivered."""

    def __init__(self):
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.is_open = self.waiting = False

    def program(self, address, data):
        assert 0 <= address < 1 << 64
        assert 0 <= data < 1 << 32

    def open(self):
        self.is_open, self.waiting = True, False

    def shut(self):
        self.is_open = False

    def signal(self):
        self.waiting = not self.is_open

    def pending(self):
        return self.waiting

    def clear(self):
        assert not self.is_open
        self.waiting = False

    def close(self):
        os.close(self.fd)


class _Slot:
    """One virtio device of the machine, and the drivers of its queues."""

    def __init__(self, machine, device, number, *, memory_base, packed, event_idx, make=True):
        self.machine = machine
        self.number = number
        self.device = device
        self.services, self.loop, self.workers = machine.services, machine.loop, machine.workers
        self.memory = machine.memory
        self.doorbells = []
        self._make()
        self.drivers = [
            FakeDriver(
                self.memory, packed=packed, size=min(16, largest), base=memory_base + SPAN * index, span=SPAN,
                event_idx=event_idx,
            )
            for index, largest in enumerate(device.queue_sizes)
        ]  # fmt: skip

    def bring_up(self, features, absurd=None):
        """As a driver does, with these of the features on offer; whether the device agreed and runs.

        ``absurd``: set-ups of some queues that take the place of their own.
        """
        for driver in self.drivers:
            driver.reset()
        self.place()
        self.set_status(0)
        assert self.status() == 0
        self.set_status(bits.ACKNOWLEDGE | bits.DRIVER)
        setup = self.drivers[0].setup
        wanted = features & self.features() & ~bits.feature_set(bits.F_RING_PACKED, bits.F_EVENT_IDX)
        wanted |= bits.feature_set(bits.F_VERSION_1)
        wanted |= setup.packed << bits.F_RING_PACKED | setup.event_idx << bits.F_EVENT_IDX
        self.set_features(wanted)
        self.set_status(bits.ACKNOWLEDGE | bits.DRIVER | bits.FEATURES_OK)
        if not self.status() & bits.FEATURES_OK:
            return False
        for index, driver in enumerate(self.drivers):
            self.set_up_queue(index, (absurd or {}).get(index, driver.setup))
        self.set_status(bits.ACKNOWLEDGE | bits.DRIVER | bits.FEATURES_OK | bits.DRIVER_OK)
        return self.status() & (bits.DRIVER_OK | bits.NEEDS_RESET) == bits.DRIVER_OK

    def notify(self, index):
        """A store to the doorbell that the kernel did not catch."""
        raise NotImplementedError

    def close(self):
        self.transport.close()


class MmioSlot(_Slot, OnMmio):
    SIZE = VirtioMmio.SIZE

    def _make(self):
        self.line = RecordingLine(self.number)
        self.transport = VirtioMmio(
            self.device, self.line, self.memory, Ring(), self.services, self._doorbell
        )
        self.base = MMIO_BASE + self.number * VirtioMmio.SIZE
        self.bus = self.machine.bus
        self.bus.map(self.base, VirtioMmio.SIZE, self.transport, name=f"virtio{self.number}")
        self.transport.place(self.base)

    def read(self, offset, size=4):
        return self.bus.read(self.base + offset, size)

    def write(self, offset, value, size=4):
        self.bus.write(self.base + offset, size, value)

    def place(self):
        """It cannot be moved."""

    def notify(self, index):
        self.write(0x50, index)

    def reset(self):
        with self.transport.lock:
            self.transport.reset()


class PciSlot(_Slot, OnPci):
    SIZE = VirtioPci.SIZE

    def _make(self):
        self.transport = VirtioPci(
            self.device, self.memory, Ring(), self.services, self._doorbell,
            EventLine if self.machine.msi else None,
        )  # fmt: skip
        self.function = self.transport.function
        self.base = HIGH + self.number * 0x1_0000
        self.table = LOW + 0x10_0000 + self.number * PAGE

    def attach(self):
        """After the bus was made."""
        self.bus = self.machine.bus
        self.config = ECAM + (self.number + 1 << 15)

    def read(self, offset, size=4):
        return self.bus.read(self.base + offset, size)

    def write(self, offset, value, size=4):
        self.bus.write(self.base + offset, size, value)

    def place(self):
        """The BARs where they belong, and everything decoded."""
        for offset, value in ((0x04, 0), (0x10, self.base & 0xFFFF_FFFF), (0x14, self.base >> 32),
                              (0x18, self.table), (0x04, 6)):  # fmt: skip
            self.bus.write(self.config + offset, 2 if offset == 4 else 4, value)

    def notify(self, index):
        self.write(0x3000 + 4 * (index & 0x3FF), index & 0xFFFF, 2)

    def reset(self):
        with self.function.lock:
            self.function.reset()
        self.function.settle()


class EduSlot:
    """edu among the functions of a PCI machine."""

    SIZE = Edu.SIZE

    def __init__(self, machine, number):
        self.device = Edu(machine.memory, machine.loop, machine.workers, EventLine if machine.msi else None)
        self.function = self.device.function
        self.base = EDU
        self.machine = machine
        self.number = number

    def attach(self):
        self.bus = self.machine.bus
        self.config = ECAM + (self.number + 1 << 15)

    read, write, reset = PciSlot.read, PciSlot.write, PciSlot.reset

    def place(self):
        for offset, value in ((0x04, 0), (0x10, self.base), (0x04, 6)):
            self.bus.write(self.config + offset, 2 if offset == 4 else 4, value)

    def close(self):
        self.device.close()


class Machine:
    """See the module. ``slots`` are those under attack; ``targets`` the virtio ones' host ends, in order."""

    def __init__(self, targets, *, pci, packed, edu=False, msi=True, event_idx=False):
        self.loop, self.workers = FakeLoop(), FakeWorkers()
        self.workers.held = True  # also while a device submits: it holds its lock then
        self.services = Services(self.loop, self.workers)
        self.hold = False
        self.msi = msi
        self.pci = pci
        self.bus = Bus()
        self.targets = targets
        self._drain, Session.drain = Session.drain, self._drain_with_workers(Session.drain)
        self._add_memory(MEMFD if any(target.shared for target in targets) else ANONYMOUS)
        options = {"packed": packed, "event_idx": event_idx}
        slot = PciSlot if pci else MmioSlot
        self.bystander = slot(self, Echo(), 0, memory_base=SAFE, packed=packed, event_idx=event_idx)
        self.slots, base = [], BASE
        for number, target in enumerate(targets, 1):
            self.slots.append(slot(self, target.device, number, memory_base=base, **options))
            base += SPAN * len(target.device.queue_sizes)
        assert base <= END
        if edu:
            self.slots.append(EduSlot(self, len(self.slots) + 1))
        if pci:
            self._join_bus()
        assert self.bystander.bring_up(0)

    def _drain_with_workers(self, drain):
        def wait(session):
            self.workers.release()  # as if they had just come that far
            drain(session)

        return wait

    def _add_memory(self, backing):
        self.memory = GuestMemory()
        for base, size, kind in ((BASE, SEAM - BASE, None), (SEAM, END - SEAM, None), (ROM, PAGE, READ_ONLY),
                                 (ROM + PAGE, PAGE, DEVICE), (SAFE, SAFE_SIZE, None)):  # fmt: skip
            self.memory.add(base, size, **({"backing": backing} if kind is None else {"kind": kind}))
        rom = next(bank for bank in self.memory.banks if bank.base == ROM)
        rom.view[:] = PATTERN * PAGE
        self.memory.write(SAFE + 2 * SPAN - PAGE, PATTERN * PAGE)
        for bank in self.memory.banks:
            for start, stop in self._guards(bank):
                bank.mapping[start:stop] = PATTERN * (stop - start)

    @staticmethod
    def _guards(bank):
        """What lies on either side of a bank in the host's memory: nobody's."""
        start = bank.host_address - ctypes.addressof(ctypes.c_char.from_buffer(bank.mapping))
        stop = start + bank.size
        return [(max(start - GUARD, 0), start), (stop, min(stop + GUARD, len(bank.mapping)))]

    def _join_bus(self):
        everyone = [self.bystander, *self.slots]
        self.host = PciBus(*(slot.function for slot in everyone))
        self.bus = self.host.bus
        for slot in everyone:
            slot.attach()
            slot.place()

    # What the world does

    def run(self):
        """Everything that can happen now. Fails when that never ends."""
        for _ in range(1000):
            if not self.hold:
                self.workers.release()
            self.loop.run()
            if self.hold or not self.workers.jobs:
                return
        raise AssertionError("the workers never come to rest")

    # What must hold

    def check_step(self):
        """After anything at all."""
        for slot in (self.bystander, *self.slots):
            assert not slot.device.lock.locked(), f"{slot.device.NAME} kept its lock"
            queues = slot.core.describe_queues() if isinstance(slot, _Slot) else ()
            assert all(queue.get("in_flight", 0) <= queue["size"] for queue in queues)

    def ask_bystander(self):
        """A request to the device that nobody attacks."""
        driver = self.bystander.drivers[0]
        token = driver.add_chain([b"are you", b" well?"], [64])
        self.bystander.notify(0)
        self.run()
        assert driver.collect() == [(token, 13, b"are you well?")]
        self.check_step()

    def check_memory(self):
        """Nothing was written that the guest does not have, or did not offer."""
        assert self.memory.read(ROM, PAGE) == PATTERN * PAGE
        assert self.memory.read(SAFE + 2 * SPAN - PAGE, PAGE) == PATTERN * PAGE
        for bank in self.memory.banks:
            for start, stop in self._guards(bank):
                assert bank.mapping[start:stop] == PATTERN * (stop - start)

    def finish(self):
        """The attack is over: everything comes to rest, and every device can be used again."""
        self.hold = False
        self.run()
        self.ask_bystander()
        for slot in (*self.slots, *self.slots):  # again, for those in whose place another was
            slot.place()
        for slot, target in zip(self.slots, self.targets, strict=False):
            runs = slot.bring_up((1 << 64) - 1)
            self.run()
            assert runs or not slot.core.broken or slot.device.NAME in ("fs",), slot.core.broken
            slot.set_status(0)
            self.run()
            target.check()
        self.loop.advance(60)
        self.check_memory()
        assert len(self.loop.watches) == len(self.bystander.drivers), "watches leaked"
        assert not [timer for timer in self.loop.timers if timer.callback is not None], "timers leaked"
        assert not self.loop.calls
        assert not self.workers.jobs

    def close(self):
        self.hold = False
        self.workers.release()
        for slot in (self.bystander, *self.slots):
            slot.close()
            self.workers.release()
        if self.pci:
            self.host.host.close()
        for target in self.targets:
            target.close()
        self.loop.calls.clear()
        self.workers.jobs.clear()
        self.bystander = self.slots = None
        Session.drain = self._drain
        self.memory.close()
