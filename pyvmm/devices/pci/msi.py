# SPDX-License-Identifier: Apache-2.0
"""The MSI capability with one vector (PCI Local Bus 3.0, section 6.8.1).

There is no mask bit: the message is sent whenever MSI is enabled. What a hostile guest can do: have messages
sent to any address it likes, which reach interrupt files of its own harts or nothing.
"""

from __future__ import annotations

from pyvmm.devices.pci.capability import Capability
from pyvmm.devices.pci.registers import DWORD, WORD
from pyvmm.mmio.regs import Bit, Field, Reg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.pci.capability import MsiLines

_ENABLE = 1 << 0


class Msi(Capability):
    """One message, 64-bit address. Its lock is the function's; ``signal`` is called with it held."""

    ID = 0x05
    NAME = "msi"
    SIZE = 0x0E

    MESSAGE_CONTROL = Reg(
        0x02,
        16,
        fields={
            "enable": Bit(0),
            "capable": Field(1, 3, "r"),
            "enabled_vectors": Field(4, 3),
            "address_64": Bit(7, "r"),
        },
        reset=0x0080,
        on_write="_write_control",
        sizes=WORD,
    )
    MESSAGE_ADDRESS = Reg(0x04, 32, fields={"address": Field(2, 30)}, on_write="_write_address", sizes=DWORD)
    MESSAGE_UPPER_ADDRESS = Reg(0x08, 32, on_write="_write_upper_address", sizes=DWORD)
    MESSAGE_DATA = Reg(0x0C, 16, on_write="_write_data", sizes=WORD)

    def __init__(self, lines: MsiLines) -> None:
        super().__init__()
        self.line = lines()
        self.reset()

    def reset(self) -> None:
        """Disabled; a message that was kept back is forgotten."""
        super().reset()
        self._restored()
        self.line.clear()

    @property
    def replaces_intx(self) -> bool:
        """Whether MSI is enabled."""
        return bool(self.MESSAGE_CONTROL & _ENABLE)

    def signal(self) -> bool:
        """Send the message; False when MSI is disabled and the wire is to be used."""
        if not self.replaces_intx:
            return False
        self.line.signal()
        return True

    def close(self) -> None:
        """Release the line."""
        self.line.close()

    def _restored(self) -> None:
        if self.replaces_intx:
            self._program()
            self.line.open()
        else:
            self.line.shut()

    def _program(self) -> None:
        self.line.program(self.MESSAGE_UPPER_ADDRESS << 32 | self.MESSAGE_ADDRESS, self.MESSAGE_DATA)

    def _changed(self) -> None:
        if self.replaces_intx:
            self._program()

    def _write_control(self, value: int) -> None:
        changed = (self.MESSAGE_CONTROL ^ value) & _ENABLE
        self.MESSAGE_CONTROL = value
        if changed:
            self._restored()
            self.function.update_intx()

    def _write_address(self, value: int) -> None:
        self.MESSAGE_ADDRESS = value
        self._changed()

    def _write_upper_address(self, value: int) -> None:
        self.MESSAGE_UPPER_ADDRESS = value
        self._changed()

    def _write_data(self, value: int) -> None:
        self.MESSAGE_DATA = value
        self._changed()
