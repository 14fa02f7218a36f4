# SPDX-License-Identifier: Apache-2.0
"""What a hostile guest does to PCI functions, for fakes.attack."""

from __future__ import annotations

from fakes.hostile import BASE, EDU, PAGE, ROM, SEAM
from fakes.pci import ECAM, HIGH, LOW
from fakes.targets import number

PLACES = (
    0, 0x10, PAGE, BASE, SEAM, ROM, ECAM, EDU, LOW, LOW + 0x10_0000, LOW + 0x10_1000, HIGH, HIGH + 0x1_0000,
    HIGH + 0x2_0000, HIGH + 0x1_1000, 0x7FFF_F000, 0xFFFF_F000, (1 << 64) - PAGE,
)  # fmt: skip
WIDTHS = (1, 2, 4, 4, 8)


class PciAttacks:
    """Steps of an Attacker on a machine with PCI, and with edu."""

    # edu

    def work_edu(self):
        """A factorial, a transfer between anywhere and anywhere, an interrupt raised or acknowledged."""
        edu, rng = self.edu, self.rng
        edu.write(rng.choice((0x04, 0x08, 0x60, 0x64)), number(rng, 32))
        edu.write(0x20, rng.choice((0, 0x80)))
        inside = 0x40000 + rng.choice((0, 0, 8, 0xFF8, 0xFFF, 0x1000, -1))
        for offset, value in zip((0x80, 0x88), rng.sample((inside, self.address()), 2), strict=True):
            edu.write(offset, value, 8)
        edu.write(0x90, rng.choice((0, 1, 8, 0x1000, 0x1001, number(rng))), 8)
        edu.write(0x98, rng.choice((1, 3, 5, 7, number(rng))), 8)
        self._configure(edu, 0x42, 2, rng.choice((0, 1, 0x80)))
        self.clean = False

    # PCI

    def _configure(self, slot, offset, width, value):
        self.machine.bus.write(slot.config + offset, width, value & (1 << 8 * width) - 1)

    def write_configuration(self):
        self.clean = False
        rng = self.rng
        offset = rng.choice(
            (rng.randrange(0x100), rng.randrange(PAGE), 0x04, 0x3C, 0x40, 0x42, 0x44, 0x48, 0x4C)
        )
        base = self.slot().config if rng.random() < 0.9 else ECAM + rng.choice((0, 31 << 15, 0xFF_F000))
        width = rng.choice(WIDTHS)
        self.machine.bus.write(base + offset, width, number(rng) & (1 << 8 * width) - 1)

    def read_configuration(self):
        width = self.rng.choice(WIDTHS)
        where = self.slot().config + self.rng.randrange(PAGE)
        assert 0 <= self.machine.bus.read(where, width) < 1 << 8 * width

    def move_bar(self):
        """Onto RAM, onto others, half out of a window, or nowhere."""
        self.clean = False
        rng, slot = self.rng, self.slot()
        place, index = rng.choice(PLACES), rng.choice((0, 0, 1, 2, 2, 3, 4, 5))
        self._configure(slot, 0x10 + 4 * index, 4, place)
        if index < 5 and rng.random() < 0.7:
            self._configure(slot, 0x14 + 4 * index, 4, place >> 32)
        self._configure(slot, 0x04, 2, rng.choice((6, 6, 6, 2, 0, 0x406, 3)))

    def put_back(self):
        self.slot().place()

    def use_messages(self):
        """Unmask vectors, mask some again, and have queues use them."""
        rng = self.rng
        slot, _ = self.virtio()
        self._configure(slot, 0x42, 2, rng.choice((0x8000, 0x8000, 0x8000, 0xC000, 0)))
        for vector in range(3):
            for word, value in enumerate((0x2800_0000, 0, vector, rng.choice((0, 0, 1)))):
                self.machine.bus.write(slot.table + 16 * vector + 4 * word, 4, value)
        slot.write(0x10, rng.randrange(3), 2)
        for index in range(len(slot.drivers)):
            slot.write(0x16, index, 2)
            slot.write(0x1A, rng.randrange(3), 2)
        self.machine.bus.read(slot.table + 0x800, 8)

    def use_window(self):
        """Reach a register through configuration space (the last virtio capability)."""
        rng = self.rng
        slot, _ = self.virtio()
        at = 0x40 + 12 * self.machine.msi + 16 * 3 + 20
        size = rng.choice((1, 2, 4, number(rng, 32)))
        for offset, width, value in (
            (4, 1, rng.choice((0, 0, 0, 2))),
            (8, 4, self.offset(slot)),
            (12, 4, size),
        ):
            self._configure(slot, at + offset, width, value)
        if rng.random() < 0.7:
            assert 0 <= self.machine.bus.read(slot.config + at + 16, 4) < 1 << 32
        else:
            self.clean = False
            self._configure(slot, at + 16, 4, number(rng, 32))

    def write_table(self):
        """Garbage into MSI-X tables, and vectors that do not exist."""
        rng = self.rng
        slot, _ = self.virtio()
        where = slot.table + rng.choice((rng.randrange(16 * 8), rng.randrange(PAGE - 8), 0x800))
        width = rng.choice(WIDTHS)
        self.machine.bus.write(where, width, number(rng) & (1 << 8 * width) - 1)
        if self.machine.msi and rng.random() < 0.5:
            self._configure(slot, 0x42, 2, rng.choice((0x8000, 0x8000, 0xC000, 0x4000, 0)))
        slot.write(0x16, number(rng, 16), 2)
        slot.write(rng.choice((0x10, 0x1A)), rng.choice((0, 1, 2, 0xFFFF, number(rng, 16))), 2)
