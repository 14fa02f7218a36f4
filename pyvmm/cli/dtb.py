# SPDX-License-Identifier: Apache-2.0
"""``pyvmm dtb``: the device tree for these options, without KVM."""

from __future__ import annotations

import sys

from pyvmm import hostfile, preview
from pyvmm.cli.options import CONFIG_OPTIONS, MACHINE_OPTIONS, PREFIXES, REFUSED, resolved
from pyvmm.cli.parser import Command, Option
from pyvmm.config import MachineConfig
from pyvmm.fdt import flatten, to_dts

COMMAND = Command(
    "dtb",
    "The device tree for these options: as source on stdout, or as a blob with -o. Needs no KVM: where the\n"
    "host would decide, it shows a plain one (rv64imafdc with Sstc and Ssaia, Sv39, a 10 MHz timebase).\n"
    "Kernel and initrd do not matter; what depends on the run (rng-seed, the initrd's place) is left out.",
    (
        Option("-o", "--output", key="output", metavar="FILE", group="Output", help="write the blob there"),
        *MACHINE_OPTIONS,
        *CONFIG_OPTIONS,
    ),
    positional=("kernel", "KERNEL"),
    refused=REFUSED,
    prefixes=PREFIXES,
)


def main(words: list[str]) -> int:
    """Print or write it."""
    values, _ = resolved(COMMAND.parse(words))
    output = values.pop("output", None)
    tree = preview.tree(MachineConfig(**values))  # type: ignore[arg-type]  # checked field by field there
    if output is None:
        sys.stdout.write(to_dts(tree.root))
    else:
        hostfile.write("The device tree", str(output), flatten(tree.root))
    return 0
