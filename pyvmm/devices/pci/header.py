# SPDX-License-Identifier: Apache-2.0
"""The type 0 configuration header (PCI Local Bus 3.0, sections 6.1 and 6.2).

What a hostile guest can do: write anything anywhere. Only the bits declared here change, and a BAR holds
only the bits that its size leaves.
"""

from __future__ import annotations

from pyvmm.devices.pci.bar import IO
from pyvmm.devices.pci.registers import DWORD, WORD, PackedRegisters
from pyvmm.mmio.regs import Bit, Field, Reg, RegArray

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.base import After
    from pyvmm.devices.pci.bar import Bar
    from pyvmm.devices.pci.function import PciFunction

_BARS = 6
_IO_SPACE, _MEMORY_SPACE, _BUS_MASTER, _INTX_DISABLE = 1 << 0, 1 << 1, 1 << 2, 1 << 10
_INTERRUPT, _CAPABILITIES = 1 << 3, 1 << 4
_MULTIFUNCTION = 0x80


class Identity:
    """What a function is: ids, and ``class_code`` as base class, sub-class, interface (24 bits)."""

    __slots__ = ("class_code", "device", "revision", "subsystem", "subsystem_vendor", "vendor")

    def __init__(
        self,
        vendor: int,
        device: int,
        class_code: int,
        *,
        revision: int = 0,
        subsystem_vendor: int = 0,
        subsystem: int = 0,
    ) -> None:
        self.vendor = vendor
        self.device = device
        self.class_code = class_code
        self.revision = revision
        self.subsystem_vendor = subsystem_vendor
        self.subsystem = subsystem


class Header(PackedRegisters):
    """The first 64 bytes of a function's configuration space. Its lock is the function's."""

    NAME = "pci-header"
    SIZE = 0x40

    VENDOR_ID = Reg(0x00, 16, access="r", sizes=WORD)
    DEVICE_ID = Reg(0x02, 16, access="r", sizes=WORD)
    COMMAND = Reg(
        0x04,
        16,
        fields={"io": Bit(0), "memory": Bit(1), "bus_master": Bit(2), "intx_disable": Bit(10)},
        on_write="_write_command",
        sizes=WORD,
    )
    STATUS = Reg(0x06, 16, fields={"interrupt": Bit(3, "r"), "capabilities": Bit(4, "r")}, sizes=WORD)
    REVISION_ID = Reg(0x08, 8, access="r")
    CLASS_CODE = RegArray(0x09, 8, count=3, access="r")
    CACHE_LINE_SIZE = Reg(0x0C, 8)
    LATENCY_TIMER = Reg(0x0D, 8, access="r")
    HEADER_TYPE = Reg(0x0E, 8, access="r", fields={"layout": Field(0, 7, "r"), "multifunction": Bit(7, "r")})
    BIST = Reg(0x0F, 8, access="r")
    BASE_ADDRESS = RegArray(0x10, 32, count=_BARS, on_write="_write_bar", sizes=DWORD)
    CARDBUS_CIS = Reg(0x28, 32, access="r", sizes=DWORD)
    SUBSYSTEM_VENDOR_ID = Reg(0x2C, 16, access="r", sizes=WORD)
    SUBSYSTEM_ID = Reg(0x2E, 16, access="r", sizes=WORD)
    EXPANSION_ROM = Reg(0x30, 32, access="r", sizes=DWORD)
    CAPABILITIES_POINTER = Reg(0x34, 8, access="r")
    INTERRUPT_LINE = Reg(0x3C, 8)
    INTERRUPT_PIN = Reg(0x3D, 8, access="r")

    def __init__(self, function: PciFunction, identity: Identity, pin: int) -> None:
        super().__init__()
        self.identity = identity
        self.pin = pin
        self.bars: list[Bar] = []
        self.capabilities = 0
        self.multifunction = False
        self._function = function
        self.reset()

    def reset(self) -> None:
        """Nothing decoded, no BAR placed, no interrupt."""
        super().reset()
        identity = self.identity
        self.VENDOR_ID, self.DEVICE_ID = identity.vendor, identity.device
        self.REVISION_ID = identity.revision
        self.CLASS_CODE = list(identity.class_code.to_bytes(3, "little"))
        self.SUBSYSTEM_VENDOR_ID, self.SUBSYSTEM_ID = identity.subsystem_vendor, identity.subsystem
        self.HEADER_TYPE = _MULTIFUNCTION if self.multifunction else 0
        self.CAPABILITIES_POINTER = self.capabilities
        self.STATUS = _CAPABILITIES if self.capabilities else 0
        self.INTERRUPT_PIN = self.pin
        for bar in self.bars:
            self.BASE_ADDRESS[bar.index] = bar.type_bits

    @property
    def bus_master(self) -> bool:
        """Whether the function may access memory."""
        return bool(self.COMMAND & _BUS_MASTER)

    @property
    def intx_enabled(self) -> bool:
        """Whether the function may use its wire."""
        return not self.COMMAND & _INTX_DISABLE

    @property
    def interrupt(self) -> bool:
        """Whether the function has an interrupt pending, which its wire shows unless disabled."""
        return bool(self.STATUS & _INTERRUPT)

    @interrupt.setter
    def interrupt(self, level: bool) -> None:
        if level:
            self.STATUS |= _INTERRUPT
        else:
            self.STATUS &= ~_INTERRUPT

    def bus_address(self, bar: Bar) -> int | None:
        """The address in ``bar``'s registers, or None while its space is not decoded."""
        if not self.COMMAND & (_IO_SPACE if bar.kind == IO else _MEMORY_SPACE):
            return None
        value = self.BASE_ADDRESS[bar.index]
        if bar.registers == 2:
            value |= self.BASE_ADDRESS[bar.index + 1] << 32
        return value & bar.mask

    def _write_command(self, value: int) -> After:
        changed = self.COMMAND ^ value
        self.COMMAND = value
        if changed & _INTX_DISABLE:
            self._function.update_intx()
        return self._function.settle if changed & (_IO_SPACE | _MEMORY_SPACE) else None

    def _write_bar(self, index: int, value: int) -> After:
        for bar in self.bars:
            high = index - bar.index
            if 0 <= high < bar.registers:
                value &= bar.mask >> 32 * high
                self.BASE_ADDRESS[index] = value if high else value | bar.type_bits
                return None if self.bus_address(bar) is None else self._function.settle
        return None
