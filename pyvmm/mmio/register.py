# SPDX-License-Identifier: Apache-2.0
"""How a register is declared: where it is, which bits it has, and what may be done to it.

What the declarations of a device are good for is in ``pyvmm.mmio.regs``, which is where to import them from.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import overload


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
        "last",
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
        #: Offset of the last byte of the (last) register.
        self.last = offset + (count - 1) * stride + self.size - 1
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
