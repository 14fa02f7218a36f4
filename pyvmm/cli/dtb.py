# SPDX-License-Identifier: Apache-2.0
"""``pyvmm dtb``: the device tree for these options, without KVM."""

from __future__ import annotations

import os
import sys

from pyvmm import devicetree, hostfile, isa, layout, peripherals
from pyvmm.cli.options import MACHINE_OPTIONS, PREFIXES, REFUSED
from pyvmm.cli.parser import Command, Option
from pyvmm.config import MachineConfig
from pyvmm.errors import ConfigError
from pyvmm.fdt import flatten, to_dts
from pyvmm.kvm import regs

COMMAND = Command(
    "dtb",
    "The device tree for these options: as source on stdout, or as a blob with -o. Needs no KVM: where the\n"
    "host would decide, it shows a plain one (rv64imafdc with Sstc, Sv39, a 10 MHz timebase, in-kernel AIA).",
    (
        Option("-o", "--output", key="output", metavar="FILE", group="Output", help="write the blob there"),
        *MACHINE_OPTIONS,
    ),
    positional=("kernel", "KERNEL"),
    refused=REFUSED,
    prefixes=PREFIXES,
)


def main(words: list[str]) -> int:
    """Print or write it."""
    values = COMMAND.parse(words)
    output = values.pop("output", None)
    tree = build(MachineConfig(**values))  # type: ignore[arg-type]  # checked field by field there
    if output is None:
        sys.stdout.write(to_dts(tree.root))
    else:
        hostfile.write("The device tree", str(output), flatten(tree.root))
    return 0


def build(config: MachineConfig) -> devicetree.Tree:
    """The tree of ``config`` on a plain host. The same bytes every time for the same options."""
    selection = isa.select(config.isa, config.cpu_type, config.disable_isa, regs.ISA_EXTENSIONS)
    offered = {name: name in isa.DEFAULT for name in regs.ISA_EXTENSIONS}
    wired, imsic = _controllers(config)
    names = selection.apply(offered).names
    if imsic is not None:
        names = isa.canonical({*names, "ssaia"})
    chosen = devicetree.Chosen(config.command_line(), peripherals.stdout(config), _initrd(config))
    return devicetree.build(
        devicetree.Cpu(names),
        config.cpus,
        [(layout.RAM_BASE, config.mem)],
        wired,
        imsic,
        devices=[peripheral.describe() for peripheral in peripherals.wanted(config)],
        chosen=chosen,
    )


def _controllers(
    config: MachineConfig,
) -> tuple[devicetree.Plic | devicetree.Aplic, devicetree.Imsic | None]:
    if config.irqchip == "plic":
        return devicetree.Plic(layout.PLIC_BASE, layout.PLIC_SIZE, layout.NR_SOURCES), None
    if config.irqchip == "aplic":
        return devicetree.Aplic(layout.APLIC_BASE, layout.aplic_size(config.cpus), layout.NR_SOURCES), None
    aplic = devicetree.Aplic(layout.APLIC_BASE, layout.APLIC_SIZE, layout.NR_SOURCES)
    return aplic, devicetree.Imsic(layout.IMSIC_BASE, 255)


def _initrd(config: MachineConfig) -> tuple[int, int] | None:
    """Where the initrd would lie: right below the end of RAM, as long as nobody knows the kernel's size."""
    if config.initrd is None:
        return None
    try:
        size = os.stat(config.initrd).st_size
    except OSError as error:
        raise ConfigError(f"The initrd {config.initrd} cannot be read: {error.strerror}.") from error
    end = layout.RAM_BASE + config.mem
    start = (end - size) & ~0xFFF
    return start, start + size
