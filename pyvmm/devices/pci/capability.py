# SPDX-License-Identifier: Apache-2.0
"""Capabilities: what a function says about itself beyond the header (PCI Local Bus 3.0, section 6.7)."""

from __future__ import annotations

from pyvmm.devices.pci.registers import PackedRegisters
from pyvmm.mmio.regs import Reg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ClassVar

    from pyvmm.devices.base import MsiLine
    from pyvmm.devices.pci.function import PciFunction

    #: Makes a message-signalled interrupt. What it makes costs a route only once it is opened.
    MsiLines = Callable[[], MsiLine]


class Capability(PackedRegisters):
    """A structure in a function's capability list. A subclass sets ID, NAME and SIZE and declares the rest.

    Registers begin at offset 2. What differs between instances but not in time is stored by the subclass's
    ``reset``, which its ``__init__`` calls last. The lock is that of the function.
    """

    ID: ClassVar[int] = 0
    NAME = "capability"
    SIZE = 2

    CAPABILITY_ID = Reg(0x00, 8, access="r", on_read="_read_id")
    NEXT_POINTER = Reg(0x01, 8, access="r", on_read="_read_next")

    #: The function it belongs to; set by ``PciFunction.add_capability``.
    function: PciFunction

    def __init__(self, **counts: int) -> None:
        super().__init__(**counts)
        #: Offset in configuration space of the next capability; 0 when this is the last.
        self.next = 0

    @property
    def replaces_intx(self) -> bool:
        """Whether the function's interrupts are messages now: it must not use its wire then."""
        return False

    def close(self) -> None:
        """Release what the host lent."""

    def _read_id(self) -> int:
        return self.ID

    def _read_next(self) -> int:
        return self.next
