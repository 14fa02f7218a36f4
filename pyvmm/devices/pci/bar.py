# SPDX-License-Identifier: Apache-2.0
"""Base address registers, and the windows of the host bridge in which they can lie."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Lock
    from typing import Protocol

    from pyvmm.devices.base import After
    from pyvmm.mmio.bus import Mapping
    from pyvmm.mmio.regs import State

    class Region(Protocol):
        """What answers behind a BAR: a RegisterDevice, or what behaves like one. Offsets are into the BAR."""

        #: The function's: ``PciFunction.add_bar`` sets it.
        lock: Lock

        def read(self, offset: int, size: int) -> int: ...

        def write(self, offset: int, size: int, value: int) -> After: ...

        def decode(self, offset: int, size: int, is_write: bool, value: int) -> tuple[str, str]: ...

        def reset(self) -> None: ...

        def state(self) -> State: ...

        def load_state(self, state: State) -> None: ...


#: Address spaces of BARs and windows.
IO, MEMORY_32, MEMORY_64 = 0, 1, 2

_TYPE_BITS = {IO: 0b0001, MEMORY_32: 0b0000, MEMORY_64: 0b0100}
_PREFETCHABLE = 0b1000
_SMALLEST = {IO: 16, MEMORY_32: 4096, MEMORY_64: 4096}


class Window:
    """Guest-physical addresses that the host bridge hands on to the bus, and what they are called there.

    ``base`` is the address on the bus, which BARs hold, ``cpu_base`` the guest-physical one.
    """

    __slots__ = ("base", "cpu_base", "kind", "size")

    def __init__(self, kind: int, base: int, cpu_base: int, size: int) -> None:
        self.kind = kind
        self.base = base
        self.cpu_base = cpu_base
        self.size = size

    def locate(self, kind: int, address: int, size: int) -> int | None:
        """The guest-physical address of ``size`` bytes at a bus address, if they lie wholly in here."""
        if (kind == IO) != (self.kind == IO):
            return None
        if not self.base <= address <= self.base + self.size - size:
            return None
        return address - self.base + self.cpu_base


class Bar:
    """A range of ``size`` bytes that the guest places, and the device that answers there.

    ``index`` (0 to 5) is that of its (first) register; a MEMORY_64 BAR takes the next one too. ``on_place``
    is called with the new guest-physical address, or None, after the bus changed: one call at a time, with no
    device's lock held. Raises ValueError for a size that is not a power of two of at least 4 KiB (I/O: 16).
    """

    __slots__ = ("address", "device", "index", "kind", "mapping", "on_place", "refused", "size", "type_bits")

    def __init__(
        self,
        index: int,
        size: int,
        device: Region,
        *,
        kind: int = MEMORY_32,
        prefetchable: bool = False,
        on_place: Callable[[int | None], None] | None = None,
    ) -> None:
        if size & size - 1 or size < _SMALLEST[kind]:
            raise ValueError(f"BAR {index} cannot have 0x{size:x} bytes")
        self.index = index
        self.size = size
        self.device = device
        self.kind = kind
        self.on_place = on_place
        self.type_bits = _TYPE_BITS[kind] | (_PREFETCHABLE if prefetchable else 0)
        #: Where it is on the bus (guest-physical), if it is. Owned by the host bridge, as the next two.
        self.address: int | None = None
        self.mapping: Mapping | None = None
        #: Where the guest put it although another device is there.
        self.refused: int | None = None

    @property
    def registers(self) -> int:
        """How many of the six registers it takes."""
        return 2 if self.kind == MEMORY_64 else 1

    @property
    def mask(self) -> int:
        """Address bits that can be written, of both registers."""
        return ~(self.size - 1) & (1 << 32 * self.registers) - 1
