# SPDX-License-Identifier: Apache-2.0
"""Accesses to registers, compiled: what a load or store of some bytes at some offset of a device calls.

Made when an access is first seen, so not before the guest runs. What is at a place does not change, but for
banks (``when``) and values: everything else is decided here, once.
"""

from __future__ import annotations

from operator import setitem

from pyvmm.lean import partial
from pyvmm.mmio.register import RegArray
from pyvmm.mmio.regs import MASKS, bank

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.mmio.register import Register
    from pyvmm.mmio.regs import After, Places, Reader, RegisterDevice, Writer


def reader(device: RegisterDevice, places: Places, size: int, otherwise: Reader) -> Reader:
    """What a load of ``size`` bytes calls that reaches ``places``; ``otherwise`` when there are none."""
    found = otherwise
    for register, index, lane in places:
        found = _banked_reader(device, register, _reader(device, register, index, lane, size), found)
    return found


def writer(device: RegisterDevice, places: Places, size: int, otherwise: Writer) -> Writer:
    """What a store of ``size`` bytes calls that reaches ``places``; ``otherwise`` when there are none."""
    found = otherwise
    for register, index, lane in places:
        found = _banked_writer(device, register, _writer(device, register, index, lane, size), found)
    return found


def _banked_reader(device: RegisterDevice, register: Register, inside: Reader, otherwise: Reader) -> Reader:
    if register.when is None:
        return inside
    values = device.__dict__
    selector, mask = bank(type(device), register.when)

    def read() -> int:
        return inside() if values[selector] & mask else otherwise()

    return read


def _banked_writer(device: RegisterDevice, register: Register, inside: Writer, otherwise: Writer) -> Writer:
    if register.when is None:
        return inside
    values = device.__dict__
    selector, mask = bank(type(device), register.when)

    def write(value: int) -> After:
        return inside(value) if values[selector] & mask else otherwise(value)

    return write


def _reader(device: RegisterDevice, register: Register, index: int, lane: int, size: int) -> Reader:
    load = _load(device, register, index)
    if size == register.size and register.on_read is None:
        return load
    shift, mask = 8 * lane, register.mask >> 8 * lane & (1 << 8 * size) - 1
    if shift:
        return lambda: load() >> shift & mask
    return lambda: load() & mask


def _load(device: RegisterDevice, register: Register, index: int) -> Reader:
    values, name = device.__dict__, register.name
    is_array = isinstance(register, RegArray)
    if register.on_read is not None:
        handler: Callable[..., int] = getattr(device, register.on_read)
        return (lambda: int(handler(index))) if is_array else handler
    if is_array:
        return lambda: values[name][index]
    return partial(values.__getitem__, name)  # runs no bytecode


def _writer(device: RegisterDevice, register: Register, index: int, lane: int, size: int) -> Writer:
    store = _store(device, register, index)
    lane_mask = MASKS[size]
    plain = register.mask == register.rw_mask and size == register.size
    if plain or not register.stored:
        mask = register.rw_mask & lane_mask
        return store if mask == lane_mask else lambda value: store(value & mask)
    values, name, shift = device.__dict__, register.name, 8 * lane
    keep = register.rw_mask & ~(lane_mask << shift)
    is_array = isinstance(register, RegArray)

    def write(value: int) -> After:
        old = values[name][index] if is_array else values[name]
        return store(register.merge(old, value << shift | old & keep))

    return write


def _store(device: RegisterDevice, register: Register, index: int) -> Writer:
    values, name = device.__dict__, register.name
    is_array = isinstance(register, RegArray)
    if register.on_write is not None:
        handler: Callable[..., After] = getattr(device, register.on_write)
        return (lambda value: handler(index, value)) if is_array else handler
    if is_array:
        return lambda value: values[name].__setitem__(index, value)
    return partial(setitem, values, name)
