# SPDX-License-Identifier: Apache-2.0
"""Registers as data: a device declares its map, and decoding, reset, saving and tracing follow from it.

::

    class Watchdog(RegisterDevice):
        NAME = "watchdog"
        SIZE = 0x1000
        CTRL = Reg(0x00, 32, fields={"enable": Bit(0), "irq": Bit(1)}, on_write="_rearm")
        LOAD = Reg(0x04, 32, reset=0xFFFF_FFFF)
        VALUE = Reg(0x08, 32, access="r", on_read="_remaining")
        STAT = Reg(0x0C, 32, fields={"fired": Bit(0, "w1c")})

On an instance a register is a plain attribute of the same name, an int (a list of ints for a RegArray).
It holds the stored value, so that a handler's access to its own registers costs an attribute load.

``on_read`` names the method that replaces the load and returns the value; ``on_write`` the one that
replaces the store. The latter is given the value that a plain register would now hold (read-only bits kept,
w1c and w1s applied, reserved bits 0), stores it if there is something to store, and returns the ``After``
of the write, if any. For an array both are given the index first.

Reserved bits, unknown offsets, wrong sizes and the wrong direction read 0 and change nothing; all but
reserved bits are counted in ``odd``.
"""

from __future__ import annotations

import threading

from pyvmm.mmio.register import Bit, Field, Reg, RegArray, Register

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ClassVar

    After = Callable[[], None] | None
    Reader = Callable[[], int]
    #: The value must fit the access.
    Writer = Callable[[int], After]
    #: Accesses that were compiled, by ``offset << 4 | size``.
    Readers = dict[int, Reader]
    Writers = dict[int, Writer]
    #: What an access reaches: (register, index, lane), one without ``when`` first.
    Places = list[tuple[Register, int, int]]
    #: What a device saves: register and attribute names to numbers and (nested) lists of them.
    State = dict[str, object]

__all__ = ["Bit", "Field", "Reg", "RegArray", "Register", "RegisterDevice"]

# A hostile guest can make an instance compile an access for every offset there is. Beyond this many the
# rest is looked up each time: slower for that guest, and no more memory.
_COMPILED_LIMIT = 1024
#: Indexed by an access's size in bytes.
MASKS = tuple((1 << 8 * size) - 1 for size in range(9))


class RegisterDevice:
    """Base of devices whose registers are declared. Satisfies ``devices.base.Device`` but for ``describe``.

    A subclass sets NAME (lower case, what traces say) and SIZE (bytes of register space), declares registers,
    and lists in STATE its own attributes that have to be saved: ints, bools, bytes and lists of those. Its
    ``__init__`` calls this one first, and ``reset`` last.

    ``lock`` is held by the bus around ``read`` and ``write``; every other entry takes it itself.
    """

    NAME: ClassVar[str]
    SIZE: ClassVar[int]
    STATE: ClassVar[tuple[str, ...]] = ()
    #: Its own ``read`` and ``write`` only send accesses elsewhere, by offset and size, or unchanged here.
    SORTS: ClassVar[bool] = False
    _registers: ClassVar[tuple[Register, ...]] = ()
    # First offset, last offset, register. On an emulated RISC-V host asking every register is slow.
    _spans: ClassVar[tuple[tuple[int, int, Register], ...]] = ()

    def __init_subclass__(cls) -> None:
        own = [value for value in vars(cls).values() if isinstance(value, Register)]
        if own:
            cls._registers = tuple(sorted((*cls._registers, *own), key=lambda register: register.offset))
            cls._spans = tuple((register.offset, register.last, register) for register in cls._registers)
            _check_map(cls, cls._registers)

    def __init__(self, **counts: int) -> None:
        """``counts``: how many elements of which arrays this instance implements, where not all."""
        self.lock = threading.Lock()
        #: Accesses that were not one to a register, or in the wrong direction.
        self.odd = 0
        self._counts = counts
        self._readers: Readers = {}
        self._writers: Writers = {}

    @classmethod
    def registers(cls) -> tuple[Register, ...]:
        """The register map, by offset."""
        return cls._registers

    def read(self, offset: int, size: int) -> int:
        """Value of ``size`` bytes at ``offset``. Never raises."""
        try:
            reader = self._readers[offset << 4 | size]
        except KeyError:
            reader = self._compile_reader(offset, size)
        return reader()

    def write(self, offset: int, size: int, value: int) -> After:
        """Store the low ``size`` bytes of ``value`` at ``offset``. Never raises."""
        try:
            writer = self._writers[offset << 4 | size]
        except KeyError:
            writer = self._compile_writer(offset, size)
        return writer(value & MASKS[size])

    def accessors(self) -> tuple[Readers, Writers]:
        """What ``read`` and ``write`` would call for accesses seen before; both grow with new ones.

        The bus calls these without the detour. Empty where a subclass has a ``read`` or ``write`` of its own,
        but where they only sort accesses (``SORTS``).
        """
        cls = type(self)
        readers = self._readers if cls.SORTS or cls.read is RegisterDevice.read else {}
        return readers, self._writers if cls.SORTS or cls.write is RegisterDevice.write else {}

    def reset(self) -> None:
        """Give every stored register its reset value."""
        for register in self._registers:
            if register.stored:
                value = register.reset
                if isinstance(register, RegArray):
                    setattr(self, register.name, [value] * self._count(register))
                else:
                    setattr(self, register.name, value)

    def decode(self, offset: int, size: int, is_write: bool, value: int) -> tuple[str, str]:
        """Register name and non-zero fields of an access, for traces: ``("CTRL", "enable=1")``."""
        name, fields = f"+0x{offset:x}", ""
        for register, index, lane in self._find(offset, size, "w" if is_write else "r"):
            if register.when is None or self._selected(register.when):
                name = f"{register.name}[{index}]" if isinstance(register, RegArray) else register.name
                fields = register.explain(value << 8 * lane)
        return name, fields

    def state(self) -> State:
        """Everything ``load_state`` needs, as JSON has it: bytes are hexadecimal. Call with the lock held."""
        from pyvmm.mmio import regstate

        return regstate.saved(self, self._state_names())

    def load_state(self, state: State) -> None:
        """Take over what ``state`` returned on a device of the same make. Call with the lock held.

        Raises ConfigError, and changes nothing, when ``state`` has other names, types, lengths or bits.
        """
        from pyvmm.mmio import regstate

        regstate.load(self, self._state_names(), state)
        self._restored()

    def _restored(self) -> None:
        """Recompute what follows from the state. For subclasses."""

    def _state_names(self) -> tuple[str, ...]:
        return (*(register.name for register in self._registers if register.stored), *self.STATE)

    def _count(self, register: Register) -> int:
        return self._counts.get(register.name, register.count)

    def _find(self, offset: int, size: int, direction: str) -> Places:
        """Every register there."""
        found = []
        for first, last, register in self._spans:
            if first <= offset <= last and direction in register.access:
                place = register.locate(offset, size)
                if place is not None and place[0] < self._count(register):
                    found.append((register, *place))
        found.sort(key=lambda entry: entry[0].when is not None)
        return found

    def _selected(self, when: str) -> bool:
        selector, mask = bank(type(self), when)
        return bool(getattr(self, selector) & mask)

    def _compile_reader(self, offset: int, size: int) -> Reader:
        reader = self._build_reader(offset, size)
        if len(self._readers) < _COMPILED_LIMIT:
            self._readers[offset << 4 | size] = reader
        return reader

    def _build_reader(self, offset: int, size: int) -> Reader:
        from pyvmm.mmio import regaccess

        return regaccess.reader(self, self._find(offset, size, "r"), size, self._odd_read)

    def _compile_writer(self, offset: int, size: int) -> Writer:
        writer = self._build_writer(offset, size)
        if len(self._writers) < _COMPILED_LIMIT:
            self._writers[offset << 4 | size] = writer
        return writer

    def _build_writer(self, offset: int, size: int) -> Writer:
        from pyvmm.mmio import regaccess

        return regaccess.writer(self, self._find(offset, size, "w"), size, self._odd_write)

    def _odd_read(self) -> int:
        self.odd += 1
        return 0

    def _odd_write(self, value: int) -> After:  # noqa: ARG002 (the shape of a writer)
        self.odd += 1
        return None


def bank(cls: type, when: str) -> tuple[str, int]:
    """Name and mask of the selecting field. Raises KeyError or AttributeError when there is none."""
    register, _, field = when.partition(".")
    return register, getattr(cls, register).fields[field].mask


# What is checked when a device's class is created.


def _check_map(cls: type[RegisterDevice], registers: tuple[Register, ...]) -> None:
    for register in registers:
        try:
            _check_register(cls, register)
            _check_fields(register)
            _check_handlers(cls, register)
        except ValueError as error:
            raise ValueError(f"{cls.__name__}.{register.name}: {error}") from None
    _check_overlaps(cls, registers)


def _check_register(cls: type[RegisterDevice], register: Register) -> None:
    if register.width not in (8, 16, 32, 64):
        raise ValueError(f"a register has 8, 16, 32 or 64 bits, not {register.width}")
    if register.access not in ("r", "w", "rw"):
        raise ValueError(f'access is "r", "w" or "rw", not "{register.access}"')
    if register.count < 1 or register.stride < register.size:
        raise ValueError(f"{register.count} elements, {register.stride} bytes apart, cannot be")
    if register.offset < 0 or register.offset % register.size or register.last >= cls.SIZE:
        raise ValueError(f"{register} is misaligned or outside of the device's 0x{cls.SIZE:x} bytes")
    if register.reset & ~register.mask:
        raise ValueError(f"reset value 0x{register.reset:x} sets reserved bits")
    for size in register.sizes:
        if size not in (1, 2, 4, 8) or size > register.size:
            raise ValueError(f"access sizes {register.sizes} do not fit {register.width} bits")


def _check_fields(register: Register) -> None:
    used = 0
    for name, field in register.fields.items():
        if field.lsb < 0 or field.width < 1 or field.lsb + field.width > register.width:
            raise ValueError(f"field {name} {field} does not fit {register.width} bits")
        if field.mask & used:
            other = next(other for other, its in register.fields.items() if its.mask & field.mask)
            raise ValueError(f"fields {other} {register.fields[other]} and {name} {field} overlap")
        if field.access not in ("rw", "r") and (register.access != "rw" or not register.stored):
            raise ValueError(f"field {name} {field} is {field.access}, the register is not stored rw")
        used |= field.mask


def _check_handlers(cls: type[RegisterDevice], register: Register) -> None:
    if register.on_read is not None:
        _check_handler(cls, register, register.on_read, "r")
    if register.on_write is not None:
        _check_handler(cls, register, register.on_write, "w")
    if not register.stored and "w" in register.access and register.sizes != (register.size,):
        raise ValueError("sub-word writes need a stored value to merge with")
    if register.when is not None:
        try:
            bank(cls, register.when)
        except (AttributeError, KeyError):
            raise ValueError(f"there is no field {register.when} to select it") from None


def _check_handler(cls: type[RegisterDevice], register: Register, handler: str, direction: str) -> None:
    if direction not in register.access:
        raise ValueError(f'handler {handler} can never run, access is "{register.access}"')
    if not callable(getattr(cls, handler, None)):
        raise ValueError(f"there is no method {handler}")


def _check_overlaps(cls: type[RegisterDevice], registers: tuple[Register, ...]) -> None:
    """One sweep by offset: a register is compared only with those that reach into its span."""
    reaching: list[Register] = []
    for register in registers:
        reaching = [other for other in reaching if other.last >= register.offset]
        for other in reaching:
            if not _may_share(register, other) and _collide(register, other):
                raise ValueError(f"{cls.__name__}: {other} and {register} overlap")
        reaching.append(register)


def _may_share(one: Register, other: Register) -> bool:
    """Two registers at one offset are fine when direction or bank tells them apart."""
    return not set(one.access) & set(other.access) or one.when != other.when


def _collide(one: Register, other: Register) -> bool:
    if one.stride == other.stride and one.count > 1 and other.count > 1:
        phase = (one.offset - other.offset) % one.stride
        return phase < other.size or phase + one.size > one.stride
    few, many = (one, other) if one.count <= other.count else (other, one)
    for index in range(few.count):
        first = few.offset + index * few.stride
        for address in (first, first + few.size - 1):
            element, lane = divmod(address - many.offset, many.stride)
            if 0 <= element < many.count and lane < many.size:
                return True
    return False
