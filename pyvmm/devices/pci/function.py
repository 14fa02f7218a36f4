# SPDX-License-Identifier: Apache-2.0
"""A PCI function: configuration space put together from a header and capabilities, BARs, and a wire."""

from __future__ import annotations

import threading

from pyvmm.devices.pci.header import Header, Identity
from pyvmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.base import After, IrqLine
    from pyvmm.devices.pci.bar import Bar, Region
    from pyvmm.devices.pci.capability import Capability
    from pyvmm.mmio.regs import RegisterDevice, State

    Part = RegisterDevice | Region

_FIRST_CAPABILITY = 0x40
_CAPABILITIES_END = 0x100


class PciFunction:
    """One function of a device on the bus.

    One lock for all of it: configuration space, capabilities and what is behind the BARs share ``lock``,
    which ``add_bar`` and ``add_capability`` give to their parts. Build it before the host bridge gets it.

    Lock order: this one, then the shared wire's and the interrupt controller's. ``config_read``,
    ``config_write``, ``set_intx``, ``reset``, ``state`` and ``load_state`` are called with it held.
    """

    def __init__(self, name: str, identity: Identity, *, pin: int = 1) -> None:
        """``pin``: 1 to 4 for INTA to INTD, 0 for none."""
        self.name = name
        self.lock = threading.Lock()
        #: Accesses to configuration space that no processor's ordinary load or store to it makes.
        self.odd = 0
        self.header = Header(self, identity, pin)
        self.header.lock = self.lock
        self.capabilities: list[Capability] = []
        self._wire: IrqLine | None = None
        self._uses_wire = True
        self._settle: Callable[[], None] | None = None
        # Which part answers for each 32-bit word of configuration space, and where the part begins.
        self._words: dict[int, tuple[RegisterDevice, int]] = {}
        self._place(self.header, 0)

    # Putting it together

    def add_bar(self, bar: Bar) -> None:
        """Have ``bar``. Raises ValueError when its registers are taken or do not exist."""
        taken = {index for other in self.bars for index in range(other.index, other.index + other.registers)}
        wanted = set(range(bar.index, bar.index + bar.registers))
        if wanted & taken or not wanted <= set(range(6)):
            raise ValueError(f"{self.name} cannot have a BAR {bar.index}")
        bar.device.lock = self.lock
        self.header.bars.append(bar)
        self.header.reset()

    def add_capability(self, capability: Capability) -> int:
        """Append ``capability`` to the list; returns its offset. Raises ValueError when there is no room."""
        offset = _FIRST_CAPABILITY + sum(-(-other.SIZE // 4) * 4 for other in self.capabilities)
        if offset + capability.SIZE > _CAPABILITIES_END:
            raise ValueError(f"{self.name} has no room for {capability.NAME}")
        capability.lock = self.lock
        capability.function = self
        if self.capabilities:
            self.capabilities[-1].next = offset
        else:
            self.header.capabilities = offset
            self.header.reset()
        self.capabilities.append(capability)
        self._place(capability, offset)
        return offset

    def _place(self, part: RegisterDevice, offset: int) -> None:
        for word in range(offset // 4, -(-(offset + part.SIZE) // 4)):
            self._words[word] = (part, offset)

    def connect(self, wire: IrqLine | None, settle: Callable[[], None], *, multifunction: bool) -> None:
        """For the host bridge: the wire of its pin, how its BARs get onto the bus, and about neighbours."""
        self._wire = wire
        self._settle = settle
        self.header.multifunction = multifunction
        self.header.reset()

    @property
    def bars(self) -> list[Bar]:
        """The BARs."""
        return self.header.bars

    # What the host bridge calls

    def config_read(self, offset: int, size: int) -> int:
        """Value of ``size`` bytes of configuration space. What is reserved, or odd, reads 0."""
        if size > 4 or offset % size:
            self.odd += 1
            return 0
        part = self._words.get(offset // 4)
        return 0 if part is None else part[0].read(offset - part[1], size)

    def config_write(self, offset: int, size: int, value: int) -> After:
        """Store ``size`` bytes to configuration space."""
        if size > 4 or offset % size:
            self.odd += 1
            return None
        part = self._words.get(offset // 4)
        return None if part is None else part[0].write(offset - part[1], size, value)

    def decode(self, offset: int, size: int, is_write: bool, value: int) -> tuple[str, str]:
        """Name and fields of what an access to configuration space reaches, for the trace."""
        part = self._words.get(offset // 4)
        if part is None:
            return f"+0x{offset:x}", ""
        name, fields = part[0].decode(offset - part[1], size, is_write, value)
        return (name if part[0] is self.header else f"{part[0].NAME}.{name}"), fields

    def settle(self) -> None:
        """Put the BARs where the registers say. With no device's lock held."""
        if self._settle is not None:
            self._settle()

    # What the device calls

    @property
    def bus_master(self) -> bool:
        """Whether the guest allows this function to access memory. Messages (MSI) are sent all the same."""
        return self.header.bus_master

    def set_intx(self, level: bool) -> None:
        """Have an interrupt pending, or not. The wire shows it unless disabled or replaced by messages."""
        self.header.interrupt = level
        if self._wire is not None:
            self._wire.set(level and self._uses_wire)

    def update_intx(self) -> None:
        """Drive the wire anew: whether there is a use for it may have changed."""
        uses_messages = any(capability.replaces_intx for capability in self.capabilities)
        self._uses_wire = self.header.intx_enabled and not uses_messages
        self.set_intx(self.header.interrupt)

    # The life of all parts

    def reset(self) -> None:
        """Power-on values everywhere. Call ``settle`` afterwards, without the lock."""
        self._uses_wire = False  # until all parts are as they shall be
        for part in self._parts().values():
            part.reset()
        self.update_intx()

    def state(self) -> State:
        """State of every part by name, as plain data."""
        return {name: part.state() for name, part in self._parts().items()}

    def load_state(self, state: State) -> None:
        """Take over what ``state`` returned. Call ``settle`` afterwards, without the lock.

        Raises ConfigError when it is another function's, or damaged.
        """
        parts = self._parts()
        if set(state) != set(parts):
            raise ConfigError(f"The saved state of {self.name} is that of another device.")
        self._uses_wire = False
        for name, part in parts.items():
            saved = state[name]
            if not isinstance(saved, dict):
                raise ConfigError(f"The saved state of {self.name} is damaged: {name} has another form.")
            part.load_state(saved)
        self.update_intx()

    def close(self) -> None:
        """Release what the capabilities borrowed from the host."""
        for capability in self.capabilities:
            capability.close()

    def _parts(self) -> dict[str, Part]:
        """Everything that has state, by name."""
        parts: dict[str, Part] = {"header": self.header}
        for number, capability in enumerate(self.capabilities):
            parts[f"{capability.NAME}{number}"] = capability
        for bar in self.bars:
            parts[f"bar{bar.index}"] = bar.device
        return parts
