# SPDX-License-Identifier: Apache-2.0
"""The PCI host bridge in a machine's address map and device tree.

Bindings: Documentation/devicetree/bindings/pci/host-generic-pci.yaml in the Linux kernel, and PCI Bus Binding
to Open Firmware, revision 2.1, for addresses, ``ranges`` and ``interrupt-map``.
"""

from __future__ import annotations

from pyvmm import layout
from pyvmm.devices.pci.bar import IO, MEMORY_32, MEMORY_64, Window
from pyvmm.devices.pci.host import PciHost
from pyvmm.devices.pci.intx import WIRES, wire_of
from pyvmm.fdt import U64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devicetree import Tree
    from pyvmm.fdt import Node

# First cell of a PCI address: the space in bits 24 and 25, the slot in bits 11 to 15.
_SPACES = {IO: 0x0100_0000, MEMORY_32: 0x0200_0000, MEMORY_64: 0x0300_0000}
_SLOT_SHIFT = 11
_PIN_MASK = 7


def windows(ram_end: int) -> tuple[Window, ...]:
    """Where BARs can lie in a machine whose RAM ends at ``ram_end``."""
    found = [
        Window(IO, 0, layout.PCI_IO_BASE, layout.PCI_IO_SIZE),
        Window(MEMORY_32, layout.PCI_LOW_BASE, layout.PCI_LOW_BASE, layout.PCI_LOW_SIZE),
    ]
    high = layout.pci_high_base(ram_end)
    if high is not None:
        found.append(Window(MEMORY_64, high, high, layout.PCI_HIGH_SIZE))
    return tuple(found)


def describe(tree: Tree, ram_end: int) -> Node:
    """Add the host bridge to ``tree``. MSIs are offered when the machine has a controller for them."""
    node = tree.soc.child(f"pcie@{layout.PCI_ECAM_BASE:x}")
    PciHost.describe(node)
    node["reg"] = [U64(layout.PCI_ECAM_BASE), U64(layout.PCI_ECAM_SIZE)]
    node["#address-cells"] = 3
    node["#size-cells"] = 2
    node["ranges"] = [cell for window in windows(ram_end) for cell in _range(window)]
    node["#interrupt-cells"] = 1
    node["interrupt-map-mask"] = [WIRES - 1 << _SLOT_SHIFT, 0, 0, _PIN_MASK]
    node["interrupt-map"] = _interrupt_map(tree)
    if tree.msi is not None:
        node["msi-parent"] = [tree.msi]
    return node


def _range(window: Window) -> list[int | U64]:
    return [_SPACES[window.kind], U64(window.base), U64(window.cpu_base), U64(window.size)]


def _interrupt_map(tree: Tree) -> list[int | U64 | Node]:
    """Which wire a pin of a slot is connected to. Slots repeat after four, which is all the mask lets by."""
    cells: list[int | U64 | Node] = []
    for slot in range(WIRES):
        for pin in range(1, WIRES + 1):
            specifier = tree.specifier(layout.PCI_IRQS[wire_of(slot, pin)])
            cells += [slot << _SLOT_SHIFT, 0, 0, pin, tree.wired, *specifier]
    return cells
