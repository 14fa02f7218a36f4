# SPDX-License-Identifier: Apache-2.0
"""The host bridge: configuration space in memory (ECAM) of bus 0, and the windows in which BARs lie.

Enhanced configuration access: PCI Express Base, section 7.2.2. The address is slot, function and register;
binding host-generic-pci.yaml.

What a hostile guest can do: place BARs anywhere, as often as it likes, from all harts at once. A BAR answers
only inside the windows, where nothing but BARs is; of two at one place the first keeps it.
"""

from __future__ import annotations

import threading

from pyvmm.devices.pci.function import PciFunction
from pyvmm.devices.pci.header import Identity
from pyvmm.devices.pci.intx import SharedWire, wire_of
from pyvmm.errors import BusError, ConfigError
from pyvmm.lean import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.devices.base import After, IrqLine
    from pyvmm.devices.pci.bar import Bar, Window
    from pyvmm.fdt import Node
    from pyvmm.mmio.bus import Bus
    from pyvmm.mmio.regs import State

_SLOTS, _FUNCTIONS = 32, 8
_REGISTER_BITS = 12
_FUNCTION_SIZE = 1 << _REGISTER_BITS

#: Bytes of configuration space: one bus.
ECAM_SIZE = _SLOTS * _FUNCTIONS * _FUNCTION_SIZE

_HOST_BRIDGE = Identity(0x1B36, 0x0008, 0x06_00_00, subsystem_vendor=0x1AF4, subsystem=0x1100)


class PciHost:
    """A Device: configuration space. Functions are added before the guest runs.

    Lock order: this ``lock`` → a function's. Placing BARs has a lock of its own, which comes before a
    function's and never together with this one: what a write changes is put on the bus after it.
    """

    def __init__(self, bus: Bus, wires: Sequence[IrqLine], windows: Sequence[Window]) -> None:
        """``wires``: the four lines INTA to INTD end in."""
        self.lock = threading.Lock()
        #: Accesses that were none to a function's configuration space.
        self.odd = 0
        #: How often a BAR was put where another device is, and so stayed off the bus.
        self.conflicts = 0
        self._bus = bus
        self._wires = [SharedWire(wire) for wire in wires]
        self._windows = windows
        self._functions: dict[int, PciFunction] = {}
        self._placing = threading.Lock()
        self._refused: list[PciFunction] = []
        self._install(0, PciFunction("host-bridge", _HOST_BRIDGE, pin=0))

    # Putting it together

    def add(self, function: PciFunction) -> str:
        """Give ``function`` the next free place; returns its address, such as ``00:01.0``.

        Slots 1 to 31 come first, then further functions of these. Raises ConfigError when all are taken.
        """
        for number in range(_FUNCTIONS):
            for slot in range(1, _SLOTS):
                place = slot * _FUNCTIONS + number
                if place not in self._functions:
                    self._install(place, function)
                    return _address(place)
        raise ConfigError(f"There is no room for {function.name}: the PCI bus has 248 devices already.")

    def _install(self, place: int, function: PciFunction) -> None:
        slot, number = divmod(place, _FUNCTIONS)
        self._functions[place] = function
        pin = function.header.pin
        wire = self._wires[wire_of(slot, pin)].input() if pin else None
        function.connect(wire, partial(self.settle, function), multifunction=number > 0)
        if number:
            self._functions[slot * _FUNCTIONS].header.multifunction = True
            self._functions[slot * _FUNCTIONS].header.reset()

    def functions(self) -> list[tuple[str, PciFunction]]:
        """Every function with its address, in order."""
        return [(_address(place), function) for place, function in sorted(self._functions.items())]

    def close(self) -> None:
        """Release what the functions borrowed from the host."""
        for function in self._functions.values():
            function.close()

    # The device

    def read(self, offset: int, size: int) -> int:
        """Configuration space; all ones where there is no function."""
        function = self._at(offset, size)
        if function is None:
            return (1 << 8 * size) - 1
        with function.lock:
            return function.config_read(offset % _FUNCTION_SIZE, size)

    def write(self, offset: int, size: int, value: int) -> After:
        """Configuration space."""
        function = self._at(offset, size)
        if function is None:
            return None
        with function.lock:
            return function.config_write(offset % _FUNCTION_SIZE, size, value)

    def reset(self) -> None:
        """Reset every function. Call ``settle_all`` afterwards, without the lock."""
        for function in self._functions.values():
            with function.lock:
                function.reset()

    def state(self) -> State:
        """State of every function by address, as plain data."""
        found: State = {}
        for address, function in self.functions():
            with function.lock:
                found[address] = function.state()
        return found

    def load_state(self, state: State) -> None:
        """Take over what ``state`` returned. Call ``settle_all`` afterwards, without the lock.

        Raises ConfigError when the bus has other functions, or the state is damaged.
        """
        functions = self.functions()
        for address, function in functions:
            saved = state.get(address)
            if not isinstance(saved, dict) or len(state) != len(functions):
                raise ConfigError(f"The saved state has other PCI devices: {function.name} is at {address}.")
            with function.lock:
                function.load_state(saved)

    def decode(self, offset: int, size: int, is_write: bool, value: int) -> tuple[str, str]:
        """``00:01.0.COMMAND`` and the fields."""
        place = offset >> _REGISTER_BITS
        function = self._functions.get(place)
        if function is None:
            return f"{_address(place)}+0x{offset % _FUNCTION_SIZE:x}", ""
        name, fields = function.decode(offset % _FUNCTION_SIZE, size, is_write, value)
        return f"{_address(place)}.{name}", fields

    @staticmethod
    def describe(node: Node) -> None:
        """Devicetree properties that do not depend on the machine (binding host-generic-pci)."""
        node["compatible"] = "pci-host-ecam-generic"
        node["device_type"] = "pci"
        node["bus-range"] = [0, 0]
        node["linux,pci-domain"] = 0
        node["dma-coherent"] = None

    def _at(self, offset: int, size: int) -> PciFunction | None:
        if offset % _FUNCTION_SIZE + size > _FUNCTION_SIZE:
            self.odd += 1
            return None
        return self._functions.get(offset >> _REGISTER_BITS)

    # BARs

    def settle(self, function: PciFunction) -> None:
        """Put the function's BARs where its registers say now. With no device's lock held.

        Registers are read only once nobody else is placing, so whoever comes last leaves the bus as the
        registers are, however many harts rewrite them. A BAR that found its place taken is tried again
        when a place becomes free.
        """
        with self._placing:
            functions = [function]
            while functions:
                vacated = [self._settle(function) for function in functions]
                functions = list(self._refused) if any(vacated) else []

    def settle_all(self) -> None:
        """As ``settle``, for every function: after ``reset``."""
        for function in self._functions.values():
            self.settle(function)

    def _settle(self, function: PciFunction) -> bool:
        """Whether a BAR left its place."""
        with function.lock:
            wanted = [(bar, self._locate(function, bar)) for bar in function.bars]
        vacated = [self._place(bar, address, function.name) for bar, address in wanted]
        if function in self._refused:
            self._refused.remove(function)
        if any(bar.refused is not None for bar in function.bars):
            self._refused.append(function)
        return any(vacated)

    def _locate(self, function: PciFunction, bar: Bar) -> int | None:
        """The guest-physical address that the registers give ``bar``; None when it is not to answer."""
        address = function.header.bus_address(bar)
        if address is not None:
            for window in self._windows:
                place = window.locate(bar.kind, address, bar.size)
                if place is not None:
                    return place
        return None

    def _place(self, bar: Bar, address: int | None, name: str) -> bool:
        """Whether ``bar`` left its place."""
        before = bar.address
        if address == before:
            bar.refused = None
            return False
        try:
            self._map(bar, address, name)
            bar.address, bar.refused = address, None
        except BusError:
            self.conflicts += bar.refused != address
            bar.address, bar.refused = None, address
        if bar.address is None and bar.mapping is not None:
            bar.mapping.unmap()
            bar.mapping = None
        if bar.on_place is not None and bar.address != before:
            bar.on_place(bar.address)
        return before is not None

    def _map(self, bar: Bar, address: int | None, name: str) -> None:
        """Raises BusError when the place is taken."""
        if address is None:
            return
        if bar.mapping is not None:
            bar.mapping.move(address)
        else:
            bar.mapping = self._bus.map(address, bar.size, bar.device, name=f"{name}.bar{bar.index}")


def _address(place: int) -> str:
    return f"00:{place // _FUNCTIONS:02x}.{place % _FUNCTIONS}"
