# SPDX-License-Identifier: Apache-2.0
"""The device tree of a machine, built from plain descriptions: no KVM, no guest memory, no host.

Bindings: Devicetree Specification v0.4; Documentation/devicetree/bindings in the Linux kernel, there
riscv/cpus.yaml, riscv/extensions.yaml and, under interrupt-controller, sifive,plic-1.0.0.yaml,
riscv,aplic.yaml and riscv,imsics.yaml. Where these demand a vendor's name before the generic one, it is
the only one they list; Linux matches the generic name.
"""

from __future__ import annotations

from pyvmm import isa
from pyvmm.fdt import U64, Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

#: Trigger types of an APLIC source (dt-bindings/interrupt-controller/irq.h).
EDGE_RISING, LEVEL_HIGH = 1, 4

_SUPERVISOR_EXTERNAL = 9  # interrupt number at the hart


class Cpu:
    """What every hart looks like.

    ``extensions`` are ISA names in any order (``ssaia`` is left out unless the machine has an IMSIC),
    ``timebase`` is the frequency of ``time`` in Hz, ``mmu`` is ``sv39``, ``sv48`` or ``sv57``, and the block
    sizes of the cache operations are bytes, 0 when there are none.
    """

    __slots__ = ("cbom", "cbop", "cboz", "extensions", "mmu", "timebase")

    def __init__(
        self,
        extensions: Iterable[str] = isa.DEFAULT,
        timebase: int = 10_000_000,
        mmu: str = "sv39",
        *,
        cbom: int = 0,
        cboz: int = 0,
        cbop: int = 0,
    ) -> None:
        self.extensions = list(extensions)
        self.timebase = timebase
        self.mmu = mmu
        self.cbom = cbom
        self.cboz = cboz
        self.cbop = cbop


class Plic:
    """A PLIC with one context a hart, in hart order: S mode."""

    __slots__ = ("base", "size", "sources")

    def __init__(self, base: int, size: int, sources: int) -> None:
        self.base = base
        self.size = size
        self.sources = sources


class Aplic:
    """An APLIC: in direct mode, or in MSI mode when the machine has an :class:`Imsic` too."""

    __slots__ = ("base", "size", "sources")

    def __init__(self, base: int, size: int, sources: int) -> None:
        self.base = base
        self.size = size
        self.sources = sources


class Imsic:
    """The IMSIC files of all harts: one group, contiguous, in hart order.

    ``ids`` is the number of interrupt identities of a file, ``guest_bits`` the number of guest index bits.
    """

    __slots__ = ("base", "guest_bits", "ids")

    def __init__(self, base: int, ids: int, guest_bits: int = 0) -> None:
        self.base = base
        self.ids = ids
        self.guest_bits = guest_bits


class Device:
    """A device on the platform bus.

    ``name`` is the generic name of its node, ``irq`` the source number of its wire (None: no wire),
    ``describe`` adds the device's own properties, ``alias`` is its name under /aliases.
    """

    __slots__ = ("alias", "base", "describe", "irq", "name", "size", "trigger")

    def __init__(
        self,
        name: str,
        base: int,
        size: int,
        irq: int | None = None,
        describe: Callable[[Node], None] | None = None,
        *,
        trigger: int = LEVEL_HIGH,
        alias: str | None = None,
    ) -> None:
        self.name = name
        self.base = base
        self.size = size
        self.irq = irq
        self.describe = describe
        self.trigger = trigger
        self.alias = alias


class Chosen:
    """What the boot loader tells the kernel.

    ``stdout`` is an alias or path with options (``serial0:115200n8``). ``initrd`` is its half-open range of
    addresses. ``rng_seed`` is 32 bytes or more of entropy; without it the tree is the same every time.
    """

    __slots__ = ("bootargs", "initrd", "rng_seed", "stdout")

    def __init__(
        self,
        bootargs: str = "",
        stdout: str | None = None,
        initrd: tuple[int, int] | None = None,
        rng_seed: bytes | None = None,
    ) -> None:
        self.bootargs = bootargs
        self.stdout = stdout
        self.initrd = initrd
        self.rng_seed = rng_seed


class Tree:
    """A device tree, and the nodes that buses added to it later refer to.

    ``chosen`` is /chosen, ``soc`` the platform bus, ``wired`` the interrupt controller that its wires end in,
    ``msi`` the controller for message-signalled interrupts, if any.
    """

    __slots__ = ("chosen", "msi", "root", "soc", "wired")

    def __init__(self, root: Node, chosen: Node, soc: Node, wired: Node, msi: Node | None) -> None:
        self.root = root
        self.soc = soc
        self.wired = wired
        self.msi = msi
        self.chosen = chosen

    def specifier(self, irq: int, trigger: int = LEVEL_HIGH) -> list[int]:
        """The cells that name source ``irq`` of the wired controller."""
        return [irq] if self.wired["#interrupt-cells"] == 1 else [irq, trigger]

    def add(self, device: Device) -> Node:
        """A node on the platform bus for ``device``."""
        node = self.soc.child(f"{device.name}@{device.base:x}")
        node["reg"] = [U64(device.base), U64(device.size)]
        if device.irq is not None:
            node["interrupts"] = self.specifier(device.irq, device.trigger)
        if device.describe is not None:
            device.describe(node)
        return node

    def choose(self, chosen: Chosen) -> None:
        """Write /chosen. May be called again: numbers can change without changing the size of the blob."""
        node = self.chosen
        node["bootargs"] = chosen.bootargs
        if chosen.stdout is not None:
            node["stdout-path"] = chosen.stdout
        if chosen.initrd is not None:
            node["linux,initrd-start"] = [U64(chosen.initrd[0])]
            node["linux,initrd-end"] = [U64(chosen.initrd[1])]
        if chosen.rng_seed is not None:
            node["rng-seed"] = chosen.rng_seed


def build(
    cpu: Cpu,
    harts: int,
    memory: Sequence[tuple[int, int]],
    irqchip: Plic | Aplic,
    imsic: Imsic | None = None,
    *,
    devices: Sequence[Device] = (),
    chosen: Chosen | None = None,
) -> Tree:
    """The tree of a machine of ``harts`` equal harts (ids from 0) and ``memory`` banks of (base, size).

    Raises ValueError for descriptions that contradict each other, such as two devices at one address.
    """
    root = _describe_root()
    chosen_node = root.child("chosen")
    _describe_aliases(root, devices)
    for base, size in memory:
        _describe_memory(root, base, size)
    wires = _describe_cpus(root, cpu, harts, imsic is not None)
    soc = _describe_soc(root)
    msi = None if imsic is None else _describe_imsic(soc, imsic, wires)
    if isinstance(irqchip, Plic):
        wired = _describe_plic(soc, irqchip, wires)
    else:
        wired = _describe_aplic(soc, irqchip, msi, wires)
    soc["interrupt-parent"] = [wired]
    tree = Tree(root, chosen_node, soc, wired, msi)
    tree.choose(chosen or Chosen())
    for device in devices:
        tree.add(device)
    return tree


def _describe_root() -> Node:
    root = Node()
    root["#address-cells"] = 2
    root["#size-cells"] = 2
    root["compatible"] = "pyvmm,virt"
    root["model"] = "pyvmm virtual machine"
    return root


def _describe_aliases(root: Node, devices: Sequence[Device]) -> None:
    named = [device for device in devices if device.alias is not None]
    if named:
        node = root.child("aliases")
        for device in named:
            node[str(device.alias)] = f"/soc/{device.name}@{device.base:x}"


def _describe_memory(root: Node, base: int, size: int) -> None:
    node = root.child(f"memory@{base:x}")
    node["device_type"] = "memory"
    node["reg"] = [U64(base), U64(size)]


def _describe_cpus(root: Node, cpu: Cpu, harts: int, has_imsic: bool) -> list[Node | int]:
    """Add /cpus; returns the external interrupt of every hart, in order, as interrupts-extended takes it."""
    cpus = root.child("cpus")
    cpus["#address-cells"] = 1
    cpus["#size-cells"] = 0
    cpus["timebase-frequency"] = cpu.timebase
    extensions = [name for name in isa.canonical(cpu.extensions) if has_imsic or name != "ssaia"]
    text = isa.isa_string(extensions)
    wires: list[Node | int] = []
    for hart in range(harts):
        node = cpus.child(f"cpu@{hart:x}")
        node["device_type"] = "cpu"
        node["compatible"] = "riscv"
        node["reg"] = hart
        node["status"] = "okay"
        node["riscv,isa"] = text
        node["riscv,isa-base"] = "rv64i"
        node["riscv,isa-extensions"] = extensions
        node["mmu-type"] = f"riscv,{cpu.mmu}"
        for name, size in (("cbom", cpu.cbom), ("cboz", cpu.cboz), ("cbop", cpu.cbop)):
            if size and f"zi{name}" in extensions:
                node[f"riscv,{name}-block-size"] = size
        wires += [_describe_local_controller(node), _SUPERVISOR_EXTERNAL]
    return wires


def _describe_local_controller(cpu: Node) -> Node:
    node = cpu.child("interrupt-controller")
    node["compatible"] = "riscv,cpu-intc"
    node["interrupt-controller"] = None
    node["#interrupt-cells"] = 1
    return node


def _describe_soc(root: Node) -> Node:
    soc = root.child("soc")
    soc["compatible"] = "simple-bus"
    soc["#address-cells"] = 2
    soc["#size-cells"] = 2
    soc["ranges"] = None
    return soc


def _describe_controller(soc: Node, base: int, size: int) -> Node:
    node = soc.child(f"interrupt-controller@{base:x}")
    node["reg"] = [U64(base), U64(size)]
    node["interrupt-controller"] = None
    return node


def _describe_plic(soc: Node, plic: Plic, wires: list[Node | int]) -> Node:
    node = _describe_controller(soc, plic.base, plic.size)
    node["compatible"] = ["sifive,plic-1.0.0", "riscv,plic0"]
    node["#interrupt-cells"] = 1
    node["#address-cells"] = 0  # rows of an interrupt-map have no unit address for it
    node["riscv,ndev"] = plic.sources
    node["interrupts-extended"] = wires
    return node


def _describe_aplic(soc: Node, aplic: Aplic, msi: Node | None, wires: list[Node | int]) -> Node:
    node = _describe_controller(soc, aplic.base, aplic.size)
    node["compatible"] = ["qemu,aplic", "riscv,aplic"]
    node["#interrupt-cells"] = 2
    node["#address-cells"] = 0
    node["riscv,num-sources"] = aplic.sources
    if msi is None:
        node["interrupts-extended"] = wires
    else:
        node["msi-parent"] = [msi]
    return node


def _describe_imsic(soc: Node, imsic: Imsic, wires: list[Node | int]) -> Node:
    harts = len(wires) // 2
    node = _describe_controller(soc, imsic.base, harts * 0x1000 << imsic.guest_bits)
    node["compatible"] = ["qemu,imsics", "riscv,imsics"]
    node["#interrupt-cells"] = 0
    node["#address-cells"] = 0
    node["msi-controller"] = None
    node["#msi-cells"] = 0
    node["riscv,num-ids"] = imsic.ids
    node["riscv,hart-index-bits"] = (harts - 1).bit_length()
    if imsic.guest_bits:
        node["riscv,guest-index-bits"] = imsic.guest_bits
    node["interrupts-extended"] = wires
    return node
