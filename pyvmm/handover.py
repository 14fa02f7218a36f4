# SPDX-License-Identifier: Apache-2.0
"""What a guest is handed at its start: its kernel and initrd, the device tree, and where to find them."""

from __future__ import annotations

import os

from pyvmm import backplane, devicetree, peripherals
from pyvmm.fdt import Layout
from pyvmm.kvm import regs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.config import MachineConfig
    from pyvmm.irqchip import IrqChip
    from pyvmm.kvm.vcpu import Vcpu
    from pyvmm.loader import Boot
    from pyvmm.memory import GuestMemory

_SEED_BYTES = 64


def load(
    config: MachineConfig, boot: Boot, cpu: devicetree.Cpu, chip: IrqChip, memory: GuestMemory, first: Vcpu
) -> None:
    """Put it all into ``memory``, and let ``first``, the hart that boots, begin there.

    Raises ConfigError for what does not fit, or cannot be read or written.
    """
    chosen = devicetree.Chosen(
        config.command_line(),
        peripherals.stdout(config),
        (0, 0) if config.initrd or config.agent else None,
        os.urandom(_SEED_BYTES),
    )
    tree = devicetree.build(
        cpu,
        config.cpus,
        [(bank.base, bank.size) for bank in memory.banks],
        chip.wired,
        chip.imsic,
        devices=[place.describe() for place in peripherals.wanted(config)],
        chosen=chosen,
    )
    backplane.describe(tree, backplane.Slots(config), memory.banks[-1].end)
    # The tree holds the initrd's address, which depends on the tree's size, which depends on no address.
    layout = Layout(tree.root)
    placement = boot.place(layout.size)
    chosen.initrd = placement.initrd
    tree.choose(chosen)
    layout.update(tree.chosen)
    blob = layout.blob()
    boot.load(memory, placement)
    memory.write(placement.fdt, blob)
    if config.dump_dtb is not None:
        from pyvmm import hostfile

        hostfile.write("The device tree", config.dump_dtb, blob)
    for register, value in (("pc", boot.entry), ("a0", first.id), ("a1", placement.fdt)):
        first.set_reg(regs.core(register), value)
