# SPDX-License-Identifier: Apache-2.0
"""What a hostile guest does to a fakes.hostile.Machine, one random step after the other."""

from __future__ import annotations

import os

from fakes.attack_pci import WIDTHS, PciAttacks
from fakes.driver_rings import INDIRECT, NEXT, WRITE
from fakes.hostile import BASE, END, PAGE, ROM, SEAM, EduSlot
from fakes.pci import ECAM, HIGH
from fakes.targets import number

from pyvmm.devices.virtio import bits

ADDRESSES = (
    0, 1, BASE, BASE + 8, BASE + PAGE, SEAM - 1, SEAM - 8, SEAM, END - PAGE, END - 16, END - 8, END - 1, END,
    BASE - 1, BASE - PAGE, ROM, ROM + PAGE - 4, ROM + PAGE, ROM + 2 * PAGE - 1, 0x1002_0000, ECAM, HIGH,
    1 << 63, (1 << 64) - 1, (1 << 64) - 8, (1 << 64) - PAGE,
)  # fmt: skip
LENGTHS = (
    0,
    0,
    1,
    2,
    12,
    16,
    64,
    512,
    PAGE,
    PAGE + 1,
    SEAM - BASE,
    END - BASE,
    1 << 20,
    (1 << 31) - 1,
    (1 << 32) - 1,
)
FLAGS = (0, NEXT, WRITE, NEXT | WRITE, INDIRECT, INDIRECT | NEXT, INDIRECT | WRITE, 0xFFFF)
ALL = (1 << 64) - 1


class Attacker(PciAttacks):
    """``step`` does one thing. ``clean``: the driver kept to the rules since the device was brought up.

    How often it breaks them is drawn once: who always does never gets far.
    """

    def __init__(self, machine, rng):
        self.machine = machine
        self.rng = rng
        self.clean = False
        self.wildness = rng.choice((0.01, 0.05, 0.2, 0.6))
        self.edu = next((slot for slot in machine.slots if isinstance(slot, EduSlot)), None)
        self.rude = RUDE_ON_PCI if machine.pci else RUDE
        self.work = WORK_ON_EDU if self.edu else WORK_ON_PCI if machine.pci else WORK

    def step(self):
        actions = self.rude if self.rng.random() < self.wildness else self.work
        self.rng.choice(actions)(self)
        self.machine.check_step()

    # Choices

    def slot(self):
        return self.rng.choice(self.machine.slots)

    def virtio(self):
        """(slot, target) of a virtio device."""
        machine = self.machine
        index = self.rng.randrange(len(machine.targets))
        return machine.slots[index], machine.targets[index]

    def address(self):
        rng = self.rng
        where = rng.random()
        if where < 0.5:
            return rng.randrange(BASE, END)
        if where < 0.6:
            return rng.randrange(ROM, ROM + PAGE) & ~0xFF
        return rng.choice(ADDRESSES) if rng.random() < 0.9 else rng.getrandbits(64)

    def length(self):
        return self.rng.choice(LENGTHS) if self.rng.random() < 0.6 else self.rng.randrange(1, 2 * PAGE)

    # Registers

    def offset(self, slot):
        rng = self.rng
        if isinstance(slot, EduSlot):
            return rng.choice((rng.randrange(0xA0), rng.randrange(0xA0) & ~7, rng.randrange(slot.SIZE - 8)))
        where = rng.randrange(4)
        if where == 0:
            return rng.randrange(slot.SIZE - 8)
        config = 0x2000 if self.machine.pci else 0x100
        if where == 1:
            return config + rng.randrange(64)
        return rng.randrange(0x100) & ~3 if not self.machine.pci else rng.choice(COMMON)

    def write_register(self):
        self.clean = False
        slot, rng = self.slot(), self.rng
        value = self.address() if rng.random() < 0.2 else number(rng)
        width = rng.choice(WIDTHS)
        slot.write(self.offset(slot), value & (1 << 8 * width) - 1, width)

    def read_register(self):
        slot = self.slot()
        width = self.rng.choice(WIDTHS)
        assert 0 <= slot.read(self.offset(slot), width) < 1 << 8 * width

    # Life

    def bring_up(self):
        features = ALL if self.rng.random() < 0.6 else self.rng.getrandbits(64)
        self._bring_up(*self.virtio(), features)

    def _bring_up(self, slot, target, features=ALL):
        runs = slot.bring_up(features)
        self.clean = runs and len(self.machine.slots) == 1
        if runs and self.rng.random() < 0.9:
            for index, readable, writable in target.greeting():
                slot.drivers[index].add_chain(readable, writable)
                slot.notify(index)
            self.machine.run()

    def renew_queue(self):
        """Reset one queue, and have it back."""
        slot, _ = self.virtio()
        index = self.rng.randrange(len(slot.drivers))
        slot.reset_queue(index)
        slot.drivers[index].reset()
        slot.set_up_queue(index, slot.drivers[index].setup)

    def absurd_queue(self):
        """Queues with any size, anywhere, put to work: one of a running device, or at its start."""
        self.clean = False
        slot, _ = self.virtio()
        rng = self.rng
        index = rng.randrange(len(slot.drivers))
        setup = self._absurd_setup(slot.drivers[index].setup)
        if rng.random() < 0.5:
            slot.bring_up(ALL, {index: setup})
        else:
            slot.reset_queue(index)
            slot.set_up_queue(rng.choice((index, index, len(slot.drivers))), setup)

    def _absurd_setup(self, setup):
        rng = self.rng
        size = rng.choice((0, 1, 2, 3, 8, 16, 17, 64, 256, 32768, 65535))
        areas = [self.address() & ~(15 * rng.choice((0, 1, 1))) for _ in range(3)]
        if rng.random() < 0.5:  # only one of them makes no sense
            areas = [setup.desc, setup.driver, setup.device]
            areas[rng.randrange(3)] = self.address() & ~15
            size = setup.size
        return type(setup)(size, *areas)

    def reset_device(self):
        self.clean = False
        self.virtio()[0].set_status(0)

    def reset_queue(self):
        self.clean = False
        slot, _ = self.virtio()
        slot.reset_queue(self.rng.randrange(len(slot.drivers) + 1))

    def reset_machine(self):
        self.clean = False
        self.slot().reset()
        self.machine.workers.release()

    # Queues

    def request(self):
        """What the device understands, with random contents."""
        rng = self.rng
        slot, target = self.virtio()
        index = rng.randrange(len(slot.drivers))
        driver = slot.drivers[index]
        if slot.core.status & (bits.DRIVER_OK | bits.NEEDS_RESET) != bits.DRIVER_OK and rng.random() < 0.7:
            self._bring_up(slot, target)
        for _ in range(rng.choice((1, 1, 1, 4))):
            readable, writable = target.request(rng, index)
            if not readable and not writable:
                readable = [b"?"]
            try:
                driver.add_chain(readable, writable, indirect=driver.setup.indirect and rng.random() < 0.3)
            except (IndexError, MemoryError):
                self._bring_up(slot, target)
                return
        self._kick(slot, index)

    def _kick(self, slot, index):
        if self.rng.random() < 0.8:
            slot.notify(index)
        if self.rng.random() < 0.6:
            self.machine.run()

    def misdirect(self):
        """A request that is well-formed but for where one of its buffers is."""
        self.clean = False
        rng = self.rng
        slot, target = self.virtio()
        index = rng.randrange(len(slot.drivers))
        readable, writable = target.request(rng, index)
        if writable and (not readable or rng.random() < 0.7):
            writable[rng.randrange(len(writable))] = (self.address(), self.length() or 1)
        else:
            readable = [*readable[:-1], (self.address(), self.length() or 1)]
        try:
            slot.drivers[index].add_chain(readable, writable)
        except (IndexError, MemoryError):
            self._bring_up(slot, target)
            return
        self._kick(slot, index)

    def raw_chain(self):
        """Descriptors that lie, loop and point anywhere."""
        rng = self.rng
        self.clean = False
        slot, target = self.virtio()
        index = rng.randrange(len(slot.drivers))
        count = rng.choice((1, 1, 2, 3, 5))
        chain = [(self.address(), self.length(), rng.choice(FLAGS)) for _ in range(count)]
        if rng.random() < 0.6:  # linked as they should be
            chain = [(a, n, f & WRITE | NEXT) for a, n, f in chain[:-1]] + [
                (*chain[-1][:2], chain[-1][2] & ~NEXT)
            ]
        links = [rng.choice((0, 1, rng.randrange(16), 0xFFFF)) for _ in chain] if rng.random() < 0.4 else None
        try:
            if rng.random() < 0.3:
                length = None if rng.random() < 0.6 else self.length()
                slot.drivers[index].add_table(chain, links=links, length=length)
            else:
                slot.drivers[index].add_raw(chain, links=links)
        except (IndexError, MemoryError):
            self._bring_up(slot, target)
            return
        self._kick(slot, index)

    def scribble(self):
        """Change rings, descriptors and buffers that the device may hold."""
        self.clean = False
        rng = self.rng
        slot, _ = self.virtio()
        driver = rng.choice(slot.drivers)
        setup = driver.setup
        what = rng.randrange(6)
        if what == 0 and not setup.packed:
            driver.ring.set_index(
                rng.choice((driver.ring.available + 1, driver.ring.available + 16, number(rng, 16)))
            )
        elif what == 1 and not setup.packed:
            driver.ring.set_slot(rng.getrandbits(4), number(rng, 16))
        elif what == 2:
            descriptor = self.address(), self.length(), rng.choice(FLAGS), rng.choice((0, 3, 0xFFFF))
            driver.ring.set_descriptor(rng.randrange(setup.size), *descriptor)
        elif what == 3:
            slot.memory.write(
                rng.choice((setup.desc, setup.driver, setup.device)) + rng.randrange(64), rng.randbytes(8)
            )
        elif what == 4:
            slot.memory.write(driver.base, rng.randbytes(16 * setup.size))
        else:
            at = driver.base + rng.randrange(PAGE)
            slot.memory.write(at, rng.randbytes(64))

    def collect(self):
        """What came back is what was sent: the fake driver looks."""
        if self.clean and self.machine.targets[0].owns_buffers:
            for driver in self.machine.slots[0].drivers:
                driver.collect()

    def kick(self):
        slot, _ = self.virtio()
        rng = self.rng
        if rng.random() < 0.3:
            os.eventfd_write(rng.choice(slot.doorbells).fd, 1)
        else:
            slot.notify(rng.choice((0, 1, 2, 3, 0x3FF, number(rng, 32))))

    # The host

    def run(self):
        self.machine.run()

    def hold_workers(self):
        self.machine.hold = self.rng.random() < 0.6

    def pass_time(self):
        self.machine.loop.advance(self.rng.choice((0.01, 0.2, 1.5)))

    def happen(self):
        self.virtio()[1].happen(self.rng)

    def pause(self):
        """The machine stands still for a while, and goes on."""
        slot, target = self.virtio()
        self.machine.workers.release()
        slot.device.quiesce()
        target.happen(self.rng)
        slot.device.go_on()

    def ask_bystander(self):
        self.machine.ask_bystander()


COMMON = (
    0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x16, 0x18, 0x1A, 0x1C, 0x20, 0x24, 0x28, 0x30, 0x3A, 0x1000, 0x3000,
)  # fmt: skip
_A = Attacker
WORK = (
    *(_A.request,) * 20, *(_A.happen,) * 5, *(_A.run,) * 2, *(_A.collect,) * 3, _A.kick, _A.hold_workers,
    _A.pass_time, _A.pause, _A.renew_queue, _A.ask_bystander, _A.read_register, _A.bring_up,
)  # fmt: skip
WORK_ON_PCI = (*WORK, _A.use_messages, _A.use_messages, _A.use_window)
WORK_ON_EDU = (*WORK_ON_PCI, *(_A.work_edu,) * 10)
RUDE = (
    *(_A.raw_chain,) * 4, *(_A.misdirect,) * 4, *(_A.scribble,) * 4, *(_A.write_register,) * 4,
    *(_A.absurd_queue,) * 2, _A.reset_device, _A.reset_queue, _A.reset_machine, _A.bring_up,
)  # fmt: skip
RUDE_ON_PCI = (
    *RUDE, *(_A.write_configuration,) * 2, _A.read_configuration, _A.move_bar, *(_A.put_back,) * 3,
    *(_A.write_table,) * 2,
)  # fmt: skip
