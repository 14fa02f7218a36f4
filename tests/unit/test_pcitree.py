# SPDX-License-Identifier: Apache-2.0
"""The PCI host bridge in address map and device tree, as the guest reads it."""

import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import libfdt
import pytest

from pyvmm import devicetree, layout, pcitree
from pyvmm.devices.pci.bar import IO, MEMORY_32, MEMORY_64
from pyvmm.devices.pci.host import ECAM_SIZE
from pyvmm.devices.pci.intx import wire_of
from pyvmm.fdt import flatten

GIB = 1 << 30
RAM_END = layout.RAM_BASE + GIB
NODE = "/soc/pcie@30000000"
BINDINGS = Path(__file__).parent.parent / "data" / "bindings"
CHIPS = {
    "plic": (devicetree.Plic(layout.PLIC_BASE, layout.PLIC_SIZE, 31), None),
    "aplic": (devicetree.Aplic(layout.APLIC_BASE, layout.aplic_size(2), 31), None),
    "aia": (
        devicetree.Aplic(layout.APLIC_BASE, layout.APLIC_SIZE, 31),
        devicetree.Imsic(layout.IMSIC_BASE, 255),
    ),
}


def machine(chip, ram_end=RAM_END):
    memory = [(layout.RAM_BASE, ram_end - layout.RAM_BASE)]
    tree = devicetree.build(devicetree.Cpu(), 2, memory, *CHIPS[chip])
    pcitree.describe(tree, ram_end)
    return libfdt.FdtRo(flatten(tree.root))


def cells(fdt, name):
    value = bytes(fdt.getprop(fdt.path_offset(NODE), name))
    return [cell for (cell,) in struct.iter_unpack(">I", value)]


def phandle(fdt, path):
    return fdt.get_phandle(fdt.path_offset(path))


def rows(values, width):
    return [tuple(values[start : start + width]) for start in range(0, len(values), width)]


@pytest.mark.parametrize("chip", CHIPS)
def test_dt_validate_finds_nothing_wrong(chip, tmp_path):
    path = tmp_path / "tree.dtb"
    path.write_bytes(machine(chip).as_bytearray())
    program = str(Path(sys.executable).parent / "dt-validate")
    command = [program, "-m", "-s", str(BINDINGS), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""


def test_node_is_a_generic_host_bridge_of_one_bus():
    fdt = machine("plic")
    node = fdt.path_offset(NODE)
    assert fdt.getprop(node, "compatible").as_str() == "pci-host-ecam-generic"
    assert fdt.getprop(node, "device_type").as_str() == "pci"
    assert cells(fdt, "reg") == [0, layout.PCI_ECAM_BASE, 0, ECAM_SIZE]
    assert cells(fdt, "bus-range") == [0, 0]
    assert fdt.hasprop(node, "dma-coherent")


def test_ranges_are_the_windows_of_the_bridge():
    fdt = machine("plic")
    assert rows(cells(fdt, "ranges"), 7) == [
        (0x0100_0000, 0, 0, 0, layout.PCI_IO_BASE, 0, layout.PCI_IO_SIZE),
        (0x0200_0000, 0, layout.PCI_LOW_BASE, 0, layout.PCI_LOW_BASE, 0, layout.PCI_LOW_SIZE),
        (0x0300_0000, 1, 0, 1, 0, 0, layout.PCI_HIGH_SIZE),
    ]


@pytest.mark.parametrize(("chip", "width"), [("plic", 6), ("aplic", 7), ("aia", 7)])
def test_interrupt_map_leads_every_pin_to_the_wire_the_bridge_uses(chip, width):
    fdt = machine(chip)
    node = fdt.path_offset("/soc")
    controller = cells_of(fdt, node, "interrupt-parent")[0]
    found = rows(cells(fdt, "interrupt-map"), width)
    mask = cells(fdt, "interrupt-map-mask")
    assert mask == [0x1800, 0, 0, 7]
    assert len(found) == 16
    by_address = {row[:4]: row[4:] for row in found}
    for slot in range(32):
        for pin in (1, 2, 3, 4):
            specifier = by_address[slot << 11 & mask[0], 0, 0, pin]
            irq = layout.PCI_IRQS[wire_of(slot, pin)]
            assert specifier == ((controller, irq) if chip == "plic" else (controller, irq, 4))


def cells_of(fdt, node, name):
    return [cell for (cell,) in struct.iter_unpack(">I", bytes(fdt.getprop(node, name)))]


def test_messages_are_offered_only_where_something_takes_them():
    aia = machine("aia")
    assert cells(aia, "msi-parent") == [phandle(aia, "/soc/interrupt-controller@8000000")]
    for chip in ("plic", "aplic"):
        fdt = machine(chip)
        assert not fdt.hasprop(fdt.path_offset(NODE), "msi-parent")


def test_windows_overlap_neither_each_other_nor_ram():
    ranges = [(window.cpu_base, window.cpu_base + window.size) for window in pcitree.windows(RAM_END)]
    ranges += [
        (layout.PCI_ECAM_BASE, layout.PCI_ECAM_BASE + layout.PCI_ECAM_SIZE),
        (layout.RAM_BASE, RAM_END),
    ]
    ranges.sort()
    assert all(one[1] <= other[0] for one, other in pairwise(ranges))
    assert layout.PCI_ECAM_SIZE == ECAM_SIZE


@pytest.mark.parametrize(
    ("ram_end", "base"),
    [
        (layout.RAM_BASE + GIB, 4 * GIB),
        (4 * GIB, 4 * GIB),
        (4 * GIB + 4096, 6 * GIB),
        ((1 << 41) - 2 * GIB, (1 << 41) - 2 * GIB),
    ],
)
def test_high_window_is_aligned_and_above_ram(ram_end, base):
    assert layout.pci_high_base(ram_end) == base


def test_windows_are_of_a_size_that_linux_takes_without_a_word():
    assert all(window.size < 1 << 32 for window in pcitree.windows(RAM_END))


def test_ram_that_leaves_no_room_means_no_high_window():
    kinds = [window.kind for window in pcitree.windows((1 << 41) - 2 * GIB + 4096)]
    assert kinds == [IO, MEMORY_32]
    assert [window.kind for window in pcitree.windows(RAM_END)] == [IO, MEMORY_32, MEMORY_64]
