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
from operator import setitem

from pyvmm.errors import ConfigError
from pyvmm.lean import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ClassVar, overload

    After = Callable[[], None] | None
    Reader = Callable[[], int]
    #: The value must fit the access.
    Writer = Callable[[int], After]
    #: Accesses that were compiled, by ``offset << 4 | size``.
    Readers = dict[int, Reader]
    Writers = dict[int, Writer]
    #: What a device saves: register and attribute names to numbers and (nested) lists of them.
    State = dict[str, object]

# A hostile guest can make an instance compile an access for every offset there is. Beyond this many the
# rest is looked up each time: slower for that guest, and no more memory.
_COMPILED_LIMIT = 1024
# Indexed by an access's size in bytes.
_MASKS = tuple((1 << 8 * size) - 1 for size in range(9))


class Field:
    """``width`` bits of a register from bit ``lsb``.

    ``access``: ``rw``, ``r``, ``w1c`` (writing 1 clears the bit) or ``w1s`` (writing 1 sets it).
    """

    __slots__ = ("access", "lsb", "mask", "width")

    def __init__(self, lsb: int, width: int, access: str = "rw") -> None:
        self.lsb = lsb
        self.width = width
        self.access = access
        self.mask = (1 << width) - 1 << lsb

    def __str__(self) -> str:
        return f"[{self.lsb + self.width - 1}:{self.lsb}]"


class Bit(Field):
    """A field of one bit."""

    __slots__ = ()

    def __init__(self, lsb: int, access: str = "rw") -> None:
        super().__init__(lsb, 1, access)


class Register:
    """What Reg and RegArray have in common; see there.

    ``mask`` are the implemented bits, the rest is reserved; ``stored`` says whether there is a value behind
    it, or only handlers.
    """

    __slots__ = (
        "access",
        "count",
        "fields",
        "mask",
        "name",
        "offset",
        "on_read",
        "on_write",
        "reset",
        "rw_mask",
        "size",
        "sizes",
        "stored",
        "stride",
        "w1c_mask",
        "w1s_mask",
        "when",
        "width",
    )

    def __init__(
        self,
        offset: int,
        width: int,
        *,
        count: int,
        stride: int,
        fields: dict[str, Field] | None,
        reset: int,
        access: str,
        on_read: str | None,
        on_write: str | None,
        when: str | None,
        sizes: tuple[int, ...],
    ) -> None:
        self.name = ""
        self.offset = offset
        self.width = width
        self.size = width // 8
        self.count = count
        self.stride = stride
        self.fields = fields or {}
        self.reset = reset
        self.access = access
        self.on_read = on_read
        self.on_write = on_write
        self.when = when
        self.sizes = sizes or (self.size,)
        self.stored = ("r" in access and on_read is None) or ("w" in access and on_write is None)
        self._set_masks()

    def _set_masks(self) -> None:
        masks = {"rw": 0, "r": 0, "w1c": 0, "w1s": 0}
        for field in self.fields.values():
            masks[field.access] |= field.mask
        self.rw_mask = masks["rw"] if self.fields else (1 << self.width) - 1
        self.w1c_mask, self.w1s_mask = masks["w1c"], masks["w1s"]
        self.mask = self.rw_mask | masks["r"] | self.w1c_mask | self.w1s_mask

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def locate(self, offset: int, size: int) -> tuple[int, int] | None:
        """(index, byte within the element) of an access of ``size`` bytes, or None if it is not one."""
        distance = offset - self.offset
        index, lane = divmod(distance, self.stride)
        if 0 <= index < self.count and lane + size <= self.size and size in self.sizes and lane % size == 0:
            return index, lane
        return None

    def merge(self, old: int, value: int) -> int:
        """What the register holds after ``value`` was written over ``old``."""
        kept = old & self.mask & ~self.rw_mask & ~(value & self.w1c_mask)
        return kept | value & (self.rw_mask | self.w1s_mask)

    def explain(self, value: int) -> str:
        """Fields of ``value`` that are not zero: ``enable=1 trigger=3``."""
        parts = []
        for name, field in self.fields.items():
            bits = (value & field.mask) >> field.lsb
            if bits:
                parts.append(f"{name}={bits}" if bits < 10 else f"{name}=0x{bits:x}")
        return " ".join(parts)

    @property
    def last(self) -> int:
        """Offset of the last byte of the (last) register."""
        return self.offset + (self.count - 1) * self.stride + self.size - 1

    def __str__(self) -> str:
        array = f"[{self.count}]" if self.count > 1 else ""
        return f"{self.name}{array} (0x{self.offset:x}-0x{self.last:x})"


class Reg(Register):
    """One register of ``width`` (8, 16, 32 or 64) bits at ``offset``.

    ``fields``: bits outside of them are reserved; without fields every bit is implemented.
    ``access``: ``rw``, ``r`` or ``w``. ``sizes``: accesses allowed, in bytes; the full width by default.
    ``when``: ``"LCR.dlab"`` puts the register at its offset while that field is not zero, in the place of the
    one that is there without ``when``.
    """

    __slots__ = ()

    def __init__(
        self,
        offset: int,
        width: int = 32,
        *,
        fields: dict[str, Field] | None = None,
        reset: int = 0,
        access: str = "rw",
        on_read: str | None = None,
        on_write: str | None = None,
        when: str | None = None,
        sizes: tuple[int, ...] = (),
    ) -> None:
        super().__init__(
            offset,
            width,
            count=1,
            stride=max(width // 8, 1),
            fields=fields,
            reset=reset,
            access=access,
            on_read=on_read,
            on_write=on_write,
            when=when,
            sizes=sizes,
        )

    if TYPE_CHECKING:
        # There is no descriptor at run time: the instance's attribute hides the declaration.
        @overload
        def __get__(self, device: None, owner: type) -> Reg: ...
        @overload
        def __get__(self, device: object, owner: type) -> int: ...
        def __get__(self, device: object, owner: type) -> Reg | int: ...
        def __set__(self, device: object, value: int) -> None: ...


class RegArray(Register):
    """``count`` like registers, ``stride`` bytes apart (their width by default); the rest as in Reg.

    ``count`` is the most there can be: an instance may implement fewer (``RegisterDevice.__init__``). Arrays
    are resolved by arithmetic, so a large one costs nothing until it is used.
    """

    __slots__ = ()

    def __init__(
        self,
        offset: int,
        width: int = 32,
        *,
        count: int,
        stride: int = 0,
        fields: dict[str, Field] | None = None,
        reset: int = 0,
        access: str = "rw",
        on_read: str | None = None,
        on_write: str | None = None,
        sizes: tuple[int, ...] = (),
    ) -> None:
        super().__init__(
            offset,
            width,
            count=count,
            stride=stride or max(width // 8, 1),
            fields=fields,
            reset=reset,
            access=access,
            on_read=on_read,
            on_write=on_write,
            when=None,
            sizes=sizes,
        )

    if TYPE_CHECKING:

        @overload
        def __get__(self, device: None, owner: type) -> RegArray: ...
        @overload
        def __get__(self, device: object, owner: type) -> list[int]: ...
        def __get__(self, device: object, owner: type) -> RegArray | list[int]: ...
        def __set__(self, device: object, value: list[int]) -> None: ...


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
        return writer(value & _MASKS[size])

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
        return {name: _plain(getattr(self, name)) for name in self._state_names()}

    def load_state(self, state: State) -> None:
        """Take over what ``state`` returned on a device of the same make. Call with the lock held.

        Raises ConfigError, and changes nothing, when ``state`` has other names, types, lengths or bits.
        """
        names = self._state_names()
        if set(state) != set(names):
            differing = ", ".join(sorted(set(state) ^ set(names)))
            raise ConfigError(f"The saved state of {self.NAME} is from another version: {differing} differ.")
        masks = {register.name: register.mask for register in self._registers}
        for name in names:
            if not _same_form(state[name], getattr(self, name), masks.get(name, -1)):
                raise ConfigError(f"The saved state of {self.NAME} is damaged: {name} has another form.")
        for name in names:
            setattr(self, name, _live(state[name], getattr(self, name)))
        self._restored()

    def _restored(self) -> None:
        """Recompute what follows from the state. For subclasses."""

    def _state_names(self) -> tuple[str, ...]:
        return (*(register.name for register in self._registers if register.stored), *self.STATE)

    def _count(self, register: Register) -> int:
        return self._counts.get(register.name, register.count)

    def _find(self, offset: int, size: int, direction: str) -> list[tuple[Register, int, int]]:
        """(register, index, lane) of every register there; one without ``when`` comes first."""
        found = []
        for first, last, register in self._spans:
            if first <= offset <= last and direction in register.access:
                place = register.locate(offset, size)
                if place is not None and place[0] < self._count(register):
                    found.append((register, *place))
        found.sort(key=lambda entry: entry[0].when is not None)
        return found

    def _selected(self, when: str) -> bool:
        selector, mask = _bank(type(self), when)
        return bool(getattr(self, selector) & mask)

    def _compile_reader(self, offset: int, size: int) -> Reader:
        reader = self._build_reader(offset, size)
        if len(self._readers) < _COMPILED_LIMIT:
            self._readers[offset << 4 | size] = reader
        return reader

    def _build_reader(self, offset: int, size: int) -> Reader:
        reader: Reader = self._odd_read
        for register, index, lane in self._find(offset, size, "r"):
            reader = self._banked_reader(register, self._reader(register, index, lane, size), reader)
        return reader

    def _compile_writer(self, offset: int, size: int) -> Writer:
        writer = self._build_writer(offset, size)
        if len(self._writers) < _COMPILED_LIMIT:
            self._writers[offset << 4 | size] = writer
        return writer

    def _build_writer(self, offset: int, size: int) -> Writer:
        writer: Writer = self._odd_write
        for register, index, lane in self._find(offset, size, "w"):
            writer = self._banked_writer(register, self._writer(register, index, lane, size), writer)
        return writer

    def _odd_read(self) -> int:
        self.odd += 1
        return 0

    def _odd_write(self, value: int) -> After:  # noqa: ARG002 (the shape of a writer)
        self.odd += 1
        return None

    def _banked_reader(self, register: Register, reader: Reader, otherwise: Reader) -> Reader:
        if register.when is None:
            return reader
        values = self.__dict__
        selector, mask = _bank(type(self), register.when)

        def read() -> int:
            return reader() if values[selector] & mask else otherwise()

        return read

    def _banked_writer(self, register: Register, writer: Writer, otherwise: Writer) -> Writer:
        if register.when is None:
            return writer
        values = self.__dict__
        selector, mask = _bank(type(self), register.when)

        def write(value: int) -> After:
            return writer(value) if values[selector] & mask else otherwise(value)

        return write

    def _reader(self, register: Register, index: int, lane: int, size: int) -> Reader:
        load = self._load(register, index)
        if size == register.size and register.on_read is None:
            return load
        shift, mask = 8 * lane, register.mask >> 8 * lane & (1 << 8 * size) - 1
        if shift:
            return lambda: load() >> shift & mask
        return lambda: load() & mask

    def _load(self, register: Register, index: int) -> Reader:
        values, name = self.__dict__, register.name
        is_array = isinstance(register, RegArray)
        if register.on_read is not None:
            handler = getattr(self, register.on_read)
            return (lambda: int(handler(index))) if is_array else handler
        if is_array:
            return lambda: values[name][index]
        return partial(values.__getitem__, name)  # runs no bytecode

    def _writer(self, register: Register, index: int, lane: int, size: int) -> Writer:
        store = self._store(register, index)
        lane_mask = _MASKS[size]
        plain = register.mask == register.rw_mask and size == register.size
        if plain or not register.stored:
            mask = register.rw_mask & lane_mask
            return store if mask == lane_mask else lambda value: store(value & mask)
        values, name, shift = self.__dict__, register.name, 8 * lane
        keep = register.rw_mask & ~(lane_mask << shift)
        is_array = isinstance(register, RegArray)

        def write(value: int) -> After:
            old = values[name][index] if is_array else values[name]
            return store(register.merge(old, value << shift | old & keep))

        return write

    def _store(self, register: Register, index: int) -> Writer:
        values, name = self.__dict__, register.name
        is_array = isinstance(register, RegArray)
        if register.on_write is not None:
            handler = getattr(self, register.on_write)
            return (lambda value: handler(index, value)) if is_array else handler
        if is_array:
            return lambda value: values[name].__setitem__(index, value)
        return partial(setitem, values, name)


def _bank(cls: type, when: str) -> tuple[str, int]:
    """Name and mask of the selecting field. Raises KeyError or AttributeError when there is none."""
    register, _, field = when.partition(".")
    return register, getattr(cls, register).fields[field].mask


def _plain(value: object) -> object:
    """A copy of what a device holds, for its state."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value


def _live(value: object, like: object) -> object:
    """The other way round, for what has the form of ``like``."""
    if isinstance(value, list) and isinstance(like, list):
        return [_live(new, old) for new, old in zip(value, like, strict=True)]
    return bytes.fromhex(value) if isinstance(value, str) else value


def _same_form(value: object, like: object, mask: int) -> bool:
    """Whether ``value`` has the form of ``like``, and no bits outside of ``mask``.

    Lists have a length that is the device's make; bytes are contents, of any length.
    """
    if isinstance(like, list):
        if not isinstance(value, list) or len(value) != len(like):
            return False
        return all(_same_form(new, old, mask) for new, old in zip(value, like, strict=True))
    if isinstance(like, bytes):
        return isinstance(value, str) and len(value) % 2 == 0 and not value.strip("0123456789abcdef")
    if type(value) is not type(like):
        return False
    return not isinstance(value, int) or not value & ~mask


# What is checked when a device's class is created.


def _check_map(cls: type[RegisterDevice], registers: tuple[Register, ...]) -> None:
    for register in registers:
        what = f"{cls.__name__}.{register.name}"
        _check_register(cls, register, what)
        _check_fields(register, what)
        _check_handlers(cls, register, what)
    _check_overlaps(cls, registers)


def _check_register(cls: type[RegisterDevice], register: Register, what: str) -> None:
    if register.width not in (8, 16, 32, 64):
        raise ValueError(f"{what}: a register has 8, 16, 32 or 64 bits, not {register.width}")
    if register.access not in ("r", "w", "rw"):
        raise ValueError(f'{what}: access is "r", "w" or "rw", not "{register.access}"')
    if register.count < 1 or register.stride < register.size:
        raise ValueError(f"{what}: {register.count} elements, {register.stride} bytes apart, cannot be")
    if register.offset < 0 or register.offset % register.size or register.last >= cls.SIZE:
        raise ValueError(f"{what}: {register} is misaligned or outside of the device's 0x{cls.SIZE:x} bytes")
    if register.reset & ~register.mask:
        raise ValueError(f"{what}: reset value 0x{register.reset:x} sets reserved bits")
    if any(size not in (1, 2, 4, 8) or size > register.size for size in register.sizes):
        raise ValueError(f"{what}: access sizes {register.sizes} do not fit {register.width} bits")


def _check_fields(register: Register, what: str) -> None:
    used = 0
    for name, field in register.fields.items():
        if field.lsb < 0 or field.width < 1 or field.lsb + field.width > register.width:
            raise ValueError(f"{what}: field {name} {field} does not fit {register.width} bits")
        if field.mask & used:
            other = next(other for other, its in register.fields.items() if its.mask & field.mask)
            raise ValueError(f"{what}: fields {other} {register.fields[other]} and {name} {field} overlap")
        if field.access not in ("rw", "r") and (register.access != "rw" or not register.stored):
            raise ValueError(f"{what}: field {name} {field} is {field.access}, the register is not stored rw")
        used |= field.mask


def _check_handlers(cls: type[RegisterDevice], register: Register, what: str) -> None:
    for handler, direction in ((register.on_read, "r"), (register.on_write, "w")):
        if handler is None:
            continue
        if direction not in register.access:
            raise ValueError(f'{what}: handler {handler} can never run, access is "{register.access}"')
        if not callable(getattr(cls, handler, None)):
            raise ValueError(f"{what}: there is no method {handler}")
    if register.sizes != (register.size,) and "w" in register.access and not register.stored:
        raise ValueError(f"{what}: sub-word writes need a stored value to merge with")
    if register.when is not None:
        try:
            _bank(cls, register.when)
        except (AttributeError, KeyError):
            raise ValueError(f"{what}: there is no field {register.when} to select it") from None


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
