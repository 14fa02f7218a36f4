# SPDX-License-Identifier: Apache-2.0
"""The in-kernel AIA: one APLIC domain in MSI mode and one S-level IMSIC file a vCPU.

The kernel demands an order: create every vCPU, create the device, configure it, give the addresses, then
CTRL.INIT, all before any vCPU runs; afterwards nothing can be added. Every step may be refused, and what is
refused differs by host (guest files, kernel), so each error says which step it was: a caller can fall back
to a user-space interrupt controller and tell the user why.

Addresses go by vCPU *index* (creation order), register access by vCPU *id*: create ids in order.
"""

from __future__ import annotations

from errno import EBUSY, EINVAL, ENODEV, ENXIO

from pyvmm.kvm import uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.kvm.device import Device
    from pyvmm.kvm.ioctl import Hints
    from pyvmm.kvm.vm import Vm

MODE_EMUL = uapi.KVM_DEV_RISCV_AIA_MODE_EMUL
MODE_HWACCEL = uapi.KVM_DEV_RISCV_AIA_MODE_HWACCEL
MODE_AUTO = uapi.KVM_DEV_RISCV_AIA_MODE_AUTO
MODE_NAMES = ("emul", "hwaccel", "auto")

#: CONFIG attributes by name, all u32, in the order in which they are set. Groups and guests stay at 0.
_CONFIG = (
    ("mode", uapi.KVM_DEV_RISCV_AIA_CONFIG_MODE),
    ("ids", uapi.KVM_DEV_RISCV_AIA_CONFIG_IDS),
    ("sources", uapi.KVM_DEV_RISCV_AIA_CONFIG_SRCS),
    ("hart_bits", uapi.KVM_DEV_RISCV_AIA_CONFIG_HART_BITS),
)
_CONFIG_ATTRS = dict(_CONFIG)


def available(vm: Vm) -> bool:
    """Whether this host's KVM can make an in-kernel AIA."""
    return vm.has_device(uapi.KVM_DEV_TYPE_RISCV_AIA)


class Aia:
    """The device, from creation to CTRL.INIT. Raises KvmError whose hint names the refused step."""

    __slots__ = ("device",)

    def __init__(self, vm: Vm) -> None:
        self.device: Device = vm.create_device(uapi.KVM_DEV_TYPE_RISCV_AIA)

    def close(self) -> None:
        """Close the device's descriptor; the interrupt controller stays with the machine."""
        self.device.close()

    def config(self, attribute: str) -> int:
        """A CONFIG attribute: mode, ids, sources or hart_bits.

        Before it is set: the host's default. ``mode`` then reads MODE_AUTO where the host has IMSIC guest
        files and MODE_EMUL where not; ``ids`` the most it can do.
        """
        return self.device.get_attr(uapi.KVM_DEV_RISCV_AIA_GRP_CONFIG, _CONFIG_ATTRS[attribute])

    def configure(
        self,
        *,
        sources: int,
        hart_bits: int,
        aplic: int,
        imsics: Sequence[int],
        mode: int | None = None,
        ids: int | None = None,
    ) -> None:
        """Set everything that INIT needs, in the kernel's order.

        ``sources``: wired interrupts of the APLIC at guest-physical ``aplic`` (ignored when 0); ``imsics``:
        one page address a vCPU in creation order; ``hart_bits``: bits of a page address that tell harts
        apart; ``ids``: interrupt identities a hart, 63 to 2047 and one below a multiple of 64; ``mode`` and
        ``ids`` None: the host's default.
        """
        wanted = {"mode": mode, "ids": ids, "sources": sources, "hart_bits": hart_bits}
        for attribute, number in _CONFIG:
            value = wanted[attribute]
            if value is not None:
                step = f"CONFIG {attribute} = {_shown(attribute, value)}"
                self._set(uapi.KVM_DEV_RISCV_AIA_GRP_CONFIG, number, value, 4, step)
        if sources:
            self._set_address(uapi.KVM_DEV_RISCV_AIA_ADDR_APLIC, aplic, "APLIC")
        for index, address in enumerate(imsics):
            self._set_address(uapi.KVM_DEV_RISCV_AIA_ADDR_IMSIC + index, address, f"IMSIC {index}")

    def init(self) -> None:
        """CTRL.INIT. From here on configuration is fixed, and GSI i is routed to APLIC source i."""
        self._set(uapi.KVM_DEV_RISCV_AIA_GRP_CTRL, uapi.KVM_DEV_RISCV_AIA_CTRL_INIT, 0, 4, "CTRL INIT")

    def _set_address(self, attribute: int, address: int, who: str) -> None:
        step = f"ADDR {who} = 0x{address:x}"
        self._set(uapi.KVM_DEV_RISCV_AIA_GRP_ADDR, attribute, address, 8, step)

    def _set(self, group: int, attribute: int, value: int, size: int, step: str) -> None:
        self.device.set_attr(group, attribute, value, size, _step_hints(step))

    # State, after INIT

    def aplic(self, offset: int) -> int:
        """The APLIC's 32-bit register at ``offset``."""
        return self.device.get_attr(uapi.KVM_DEV_RISCV_AIA_GRP_APLIC, offset)

    def set_aplic(self, offset: int, value: int) -> None:
        """Write the APLIC's 32-bit register at ``offset``; it acts as a guest's store would."""
        self._set(uapi.KVM_DEV_RISCV_AIA_GRP_APLIC, offset, value, 4, f"APLIC register 0x{offset:x}")

    def imsic(self, vcpu_id: int, iselect: int) -> int:
        """A 64-bit register of a hart's IMSIC file: eidelivery 0x70, eithreshold 0x72, eip 0x80+, eie 0xC0+.

        Kernels up to 7.2 read and write only the low half of eip and eie when the file is emulated.
        """
        return self.device.get_attr(uapi.KVM_DEV_RISCV_AIA_GRP_IMSIC, _imsic_attr(vcpu_id, iselect), 8)

    def set_imsic(self, vcpu_id: int, iselect: int, value: int) -> None:
        """Write what :meth:`imsic` reads."""
        step = f"IMSIC register 0x{iselect:x} of vCPU {vcpu_id}"
        self._set(uapi.KVM_DEV_RISCV_AIA_GRP_IMSIC, _imsic_attr(vcpu_id, iselect), value, 8, step)


def _imsic_attr(vcpu_id: int, iselect: int) -> int:
    return vcpu_id << uapi.KVM_DEV_RISCV_AIA_IMSIC_ISEL_BITS | iselect


def _shown(attribute: str, value: int) -> str:
    return MODE_NAMES[value] if attribute == "mode" and value < len(MODE_NAMES) else str(value)


def _step_hints(step: str) -> Hints:
    return {
        EINVAL: f"the in-kernel AIA refused {step}",
        EBUSY: f"too late for {step}: the AIA is initialised, or a vCPU has run or is being created",
        ENXIO: f"{step}: there is no such attribute or vCPU",
        ENODEV: f"{step}: there is no such register, or the AIA is not initialised",
    }
