# SPDX-License-Identifier: Apache-2.0
"""Which interrupt controller a machine has, and how its wires reach the harts.

- ``aia``: KVM's in-kernel AIA. An APLIC in MSI mode turns wires into MSIs to one IMSIC file a hart. The only
  one with MSIs, hence with irqfd.
- ``aplic``: pyvmm's APLIC in direct mode, which drives each hart's external interrupt line.
- ``plic``: pyvmm's PLIC, which does the same. Every RISC-V guest knows it.

A wire into the in-kernel APLIC is driven with KVM_IRQ_LINE and not with an irqfd: KVM raises the input of a
wired irqfd and never lowers it.
"""

from __future__ import annotations

from pyvmm import devicetree, layout
from pyvmm.errors import ConfigError, KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from pyvmm.devices.base import IrqLine
    from pyvmm.kvm.routing import GsiRouting
    from pyvmm.kvm.vcpu import Vcpu
    from pyvmm.kvm.vm import Vm
    from pyvmm.mmio.bus import Bus

    class IrqChip(Protocol):
        """An interrupt controller of a machine under construction."""

        name: str

        @property
        def routing(self) -> GsiRouting | None:
            """Where messages are routed; None without an MSI controller."""

        @property
        def wired(self) -> devicetree.Plic | devicetree.Aplic:
            """The wired controller, for the device tree."""

        @property
        def imsic(self) -> devicetree.Imsic | None:
            """The MSI controller, for the device tree."""

        def line(self, source: int, *, edge: bool = False) -> IrqLine:
            """The wire with this source number.

            ``edge``: taken by its rising edges, where it is not for the guest to say.
            """

        def close(self) -> None:
            """Release what the kernel holds."""


class IrqChipRefused(ConfigError):
    """This host's KVM cannot give the machine this interrupt controller; the text says why."""


def candidates(wanted: str, *, ssaia: bool) -> tuple[str, ...]:
    """The kinds to try in turn for ``--irqchip``; ``ssaia`` says whether the harts shall have that extension.

    Raises ConfigError for an AIA without it: the harts' half of an AIA is that extension.
    """
    if wanted == "aia" and not ssaia:
        raise ConfigError("--irqchip aia needs the extension ssaia; leave one of them out.")
    if wanted == "auto":
        return ("aia", "plic") if ssaia else ("plic",)
    return (wanted,)


def create(kind: str, vm: Vm, vcpus: Sequence[Vcpu], bus: Bus, *, aia_mode: str) -> IrqChip:
    """An interrupt controller for a machine whose vCPUs exist and have not run.

    Raises IrqChipRefused. An ``aia`` that was refused half-way leaves the VM unusable for another kind.
    """
    if kind == "aia":
        return KernelAia(vm, vcpus, aia_mode)
    if kind == "aplic":
        return UserAplic(vcpus, bus)
    return UserPlic(vcpus, bus)


class KernelLine:
    """A wire into the in-kernel APLIC (protocol ``IrqLine``). Its device's lock orders the calls."""

    __slots__ = ("_level", "_vm", "number")

    def __init__(self, vm: Vm, number: int) -> None:
        self._vm = vm
        self._level = False
        self.number = number

    def set(self, level: bool) -> None:
        """Drive the level; KVM is told of changes only."""
        if level != self._level:
            self._level = level
            self._vm.irq_line(self.number, level)

    def pulse(self) -> None:
        """One rising edge."""
        self._vm.irq_line(self.number, True)
        self._vm.irq_line(self.number, False)


class KernelAia:
    """KVM's AIA."""

    name = "aia"

    def __init__(self, vm: Vm, vcpus: Sequence[Vcpu], mode: str) -> None:
        from pyvmm.kvm.aia import Aia
        from pyvmm.kvm.routing import GsiRouting

        self._vm = vm
        try:
            self._aia = Aia(vm)
            try:
                ids = self._configure([vcpu.id for vcpu in vcpus], mode)
                self.routing = GsiRouting(vm, layout.NR_SOURCES)
            except KvmError:
                self._aia.close()
                raise
        except KvmError as error:
            raise IrqChipRefused(
                f"This host's KVM gives no in-kernel AIA ({error}); use --irqchip plic or aplic."
            ) from error
        self.wired = devicetree.Aplic(layout.APLIC_BASE, layout.APLIC_SIZE, layout.NR_SOURCES)
        self.imsic = devicetree.Imsic(layout.IMSIC_BASE, ids)

    def _configure(self, harts: list[int], mode: str) -> int:
        """Bring the AIA up; returns how many interrupt identities a hart has."""
        from pyvmm.kvm.aia import MODE_NAMES

        self._aia.configure(
            sources=layout.NR_SOURCES,
            hart_bits=(len(harts) - 1).bit_length(),
            aplic=layout.APLIC_BASE,
            imsics=[layout.IMSIC_BASE + hart * layout.IMSIC_STRIDE for hart in harts],
            mode=None if mode == "auto" else MODE_NAMES.index(mode),
        )
        self._aia.init()
        return self._aia.config("ids")

    def line(self, source: int, *, edge: bool = False) -> KernelLine:
        """The wire into APLIC source ``source``, whose kind the guest chooses."""
        del edge
        return KernelLine(self._vm, source)

    def close(self) -> None:
        """Close the device's descriptor."""
        self._aia.close()


class _UserChip:
    """What the two emulated controllers share: they drive the harts' external interrupt lines."""

    imsic = None
    routing = None

    def __init__(self, vcpus: Sequence[Vcpu]) -> None:
        self._interrupt = [vcpu.interrupt for vcpu in vcpus]

    def signal(self, hart: int, asserted: bool) -> None:
        """Protocol ``HartSignal``."""
        self._interrupt[hart](asserted)

    def close(self) -> None:
        """Nothing is held."""


class UserPlic(_UserChip):
    """pyvmm's PLIC, with one context a hart."""

    name = "plic"

    def __init__(self, vcpus: Sequence[Vcpu], bus: Bus) -> None:
        from pyvmm.devices import nativeplic
        from pyvmm.devices.plic import Plic
        from pyvmm.devices.pliccore import PlicCore

        super().__init__(vcpus)
        ioctl, harts = vcpus[0].kernel.interrupt_address(), len(vcpus)
        core = nativeplic.in_c(ioctl, [vcpu.fd for vcpu in vcpus], sources=layout.NR_SOURCES)
        self._core = core
        self._plic = Plic(core or PlicCore(self.signal, sources=layout.NR_SOURCES, harts=harts))
        mapping = bus.map(layout.PLIC_BASE, layout.PLIC_SIZE, self._plic, name="plic")
        if core is not None:
            claim, enable = Plic.claim, Plic.enable
            mapping.answer_directly(claim.offset, (harts - 1) * claim.stride + claim.size, *core.answer)
            mapping.answer_directly(enable.offset, 32 * harts * enable.size, *core.answer_enable)
        self.wired = devicetree.Plic(layout.PLIC_BASE, layout.PLIC_SIZE, layout.NR_SOURCES)

    def line(self, source: int, *, edge: bool = False) -> IrqLine:
        """The wire into PLIC source ``source``."""
        return self._plic.line(source, edge=edge)

    def close(self) -> None:
        """The vCPUs are closed next."""
        if self._core is not None:
            self._core.close()


class UserAplic(_UserChip):
    """pyvmm's APLIC in direct mode, with one IDC a hart."""

    name = "aplic"

    def __init__(self, vcpus: Sequence[Vcpu], bus: Bus) -> None:
        from pyvmm.devices.aplic import Aplic

        super().__init__(vcpus)
        self._aplic = Aplic(self.signal, sources=layout.NR_SOURCES, harts=len(vcpus))
        size = layout.aplic_size(len(vcpus))
        bus.map(layout.APLIC_BASE, size, self._aplic, name="aplic")
        self.wired = devicetree.Aplic(layout.APLIC_BASE, size, layout.NR_SOURCES)

    def line(self, source: int, *, edge: bool = False) -> IrqLine:
        """The wire into APLIC source ``source``, whose kind the guest chooses."""
        del edge
        return self._aplic.line(source)
