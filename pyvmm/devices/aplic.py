# SPDX-License-Identifier: Apache-2.0
"""Advanced platform-level interrupt controller: RISC-V AIA 1.0, chapter 4, in direct delivery mode.

One supervisor-level domain without children, little-endian, delivering by wire; no MSIs, so ``genmsi`` and
the MSI address registers are the reserved zeros that the specification asks for. Choices it leaves open:

- Writing ``sourcecfg`` sets no pending bit of an edge-sensitive source. Reserved modes read back inactive.
- A source that becomes active is aimed at hart 0 with priority 1.
- An interrupt aimed at a hart that does not exist goes nowhere.

What a hostile guest can do: configure and claim in any order, for any number. Numbers are checked before
they become bits; arbitration walks the pending sources of a hart, 1023 at most. A wire that a device holds
high interrupts the guest forever, but nobody else.
"""

from __future__ import annotations

from pyvmm.devices.lines import InputLine, check_source
from pyvmm.mmio.regs import Bit, Field, Reg, RegArray, RegisterDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.base import HartSignal

MAX_SOURCES = 1023
MAX_HARTS = 16384
_WORD = 0xFFFF_FFFF

_INACTIVE, _DETACHED, _EDGE1, _EDGE0, _LEVEL1, _LEVEL0 = 0, 1, 4, 5, 6, 7
_MODES = (_INACTIVE, _DETACHED, _EDGE1, _EDGE0, _LEVEL1, _LEVEL0)
_IPRIO = 0xFF
_HART_SHIFT = 18


class Aplic(RegisterDevice):
    """Sources 1 to ``sources``; one interrupt delivery control (IDC) structure a hart.

    Bit i of every bitmap is source i. Lock order: device, then this one. ``signal`` is called with the lock
    held, so that harts see changes in the order in which they happened; it must not call back.
    """

    NAME = "aplic"
    SIZE = 0x4000 + 32 * MAX_HARTS
    STATE = ("_wires", "_pending", "_enabled")

    domaincfg = Reg(
        0x0000,
        fields={"be": Bit(0, "r"), "dm": Bit(2, "r"), "ie": Bit(8), "order": Field(24, 8, "r")},
        reset=0x80 << 24,
        on_write="_write_domaincfg",
    )
    sourcecfg = RegArray(
        0x0004, count=MAX_SOURCES, fields={"sm": Field(0, 3), "d": Bit(10)}, on_write="_write_sourcecfg"
    )
    setip = RegArray(0x1C00, count=32, on_read="_read_setip", on_write="_write_setip")
    setipnum = Reg(0x1CDC, access="w", on_write="_write_setipnum")
    in_clrip = RegArray(0x1D00, count=32, on_read="_read_in_clrip", on_write="_write_in_clrip")
    clripnum = Reg(0x1DDC, access="w", on_write="_write_clripnum")
    setie = RegArray(0x1E00, count=32, on_read="_read_setie", on_write="_write_setie")
    setienum = Reg(0x1EDC, access="w", on_write="_write_setienum")
    clrie = RegArray(0x1F00, count=32, access="w", on_write="_write_clrie")
    clrienum = Reg(0x1FDC, access="w", on_write="_write_clrienum")
    setipnum_le = Reg(0x2000, access="w", on_write="_write_setipnum")
    setipnum_be = Reg(0x2004, access="w", on_write="_write_setipnum_be")
    target = RegArray(
        0x3004,
        count=MAX_SOURCES,
        fields={"iprio": Field(0, 8), "hart": Field(_HART_SHIFT, 14)},
        on_write="_write_target",
    )
    idelivery = RegArray(
        0x4000, count=MAX_HARTS, stride=32, fields={"enable": Bit(0)}, on_write="_write_idelivery"
    )
    iforce = RegArray(0x4004, count=MAX_HARTS, stride=32, fields={"force": Bit(0)}, on_write="_write_iforce")
    ithreshold = RegArray(
        0x4008, count=MAX_HARTS, stride=32, fields={"iprio": Field(0, 8)}, on_write="_write_ithreshold"
    )
    topi = RegArray(
        0x4018,
        count=MAX_HARTS,
        stride=32,
        access="r",
        fields={"iprio": Field(0, 8), "identity": Field(16, 10)},
        on_read="_top",
    )
    claimi = RegArray(
        0x401C,
        count=MAX_HARTS,
        stride=32,
        access="r",
        fields={"iprio": Field(0, 8), "identity": Field(16, 10)},
        on_read="_claim",
    )

    def __init__(self, signal: HartSignal, *, sources: int, harts: int) -> None:
        words = (sources >> 5) + 1
        super().__init__(
            **dict.fromkeys(("sourcecfg", "target"), sources),
            **dict.fromkeys(("setip", "in_clrip", "setie", "clrie"), words),
            **dict.fromkeys(("idelivery", "iforce", "ithreshold", "topi", "claimi"), harts),
        )
        self._signal = signal
        self._sources = sources
        self._wires = 0
        self._asserted = [False] * harts
        self.reset()

    def line(self, number: int) -> InputLine:
        """The wire of source ``number``. Raises BusError when there is no such source."""
        check_source(self.NAME, number, self._sources)
        return InputLine(number, self._drive, self._pulse)

    def reset(self) -> None:
        """Power-on state: every source inactive. The wires stay as they are."""
        super().reset()
        self._pending = 0
        self._enabled = 0
        self._restored()

    def _restored(self) -> None:
        # Bitmaps that follow from the registers: sources by mode, and by the hart they are aimed at.
        self._active = self._edges = self._levels = self._inverted = 0
        self._aimed = [0] * len(self._asserted)
        for index, mode in enumerate(self.sourcecfg):
            if mode:
                self._index_mode(2 << index, mode)
                self._aim(2 << index, self.target[index], True)
        self._enabled &= self._active
        self._pending &= self._active
        self._notify()

    def _index_mode(self, bit: int, mode: int) -> None:
        for bitmap, member in (
            ("_active", mode != _INACTIVE),
            ("_edges", mode in (_EDGE1, _EDGE0)),
            ("_levels", mode in (_LEVEL1, _LEVEL0)),
            ("_inverted", mode in (_EDGE0, _LEVEL0)),
        ):
            others = getattr(self, bitmap) & ~bit
            setattr(self, bitmap, others | bit if member else others)

    def _aim(self, bit: int, target: int, at: bool) -> None:
        """Note that ``bit`` is, or no longer is, aimed at the hart that ``target`` names."""
        hart = target >> _HART_SHIFT
        if hart < len(self._aimed):
            others = self._aimed[hart] & ~bit
            self._aimed[hart] = others | bit if at else others

    def _rectified(self) -> int:
        return (self._wires ^ self._inverted) & (self._edges | self._levels)

    def _drive(self, number: int, level: bool) -> None:
        bit = 1 << number
        with self.lock:
            if bool(self._wires & bit) == level:
                return
            self._wires ^= bit
            self._pending |= self._rectified() & bit & self._edges
            self._follow_level(bit)
            self._notify()

    def _pulse(self, number: int) -> None:
        try:
            self._drive(number, True)
        finally:
            self._drive(number, False)

    def _follow_level(self, bit: int) -> None:
        """The pending bit of a level-sensitive source is a copy of its rectified input."""
        if bit & self._levels:
            self._pending = self._pending & ~bit | self._rectified() & bit

    def _notify(self) -> None:
        """Bring every hart's wire in line with the state."""
        delivering = bool(self.domaincfg & 1 << 8)
        for hart, before in enumerate(self._asserted):
            enabled = delivering and self.idelivery[hart]
            asserted = bool(enabled and (self.iforce[hart] or self._top(hart)))
            if asserted != before:
                self._asserted[hart] = asserted
                self._signal(hart, asserted)

    def _top(self, hart: int) -> int:
        """``topi``: identity and priority of the interrupt to take first, or 0."""
        candidates = self._pending & self._enabled & self._aimed[hart]
        best, limit = 0, self.ithreshold[hart] or _IPRIO + 1
        while candidates:
            bit = candidates & -candidates
            candidates ^= bit
            number = bit.bit_length() - 1
            priority = self.target[number - 1] & _IPRIO
            if priority < limit:
                best, limit = number << 16 | priority, priority
        return best

    def _claim(self, hart: int) -> int:
        top = self._top(hart)
        if top:
            self._clear_pending(1 << (top >> 16))
        else:
            self.iforce[hart] = 0
            self._notify()
        return top

    def _write_domaincfg(self, value: int) -> None:
        self.domaincfg = value
        self._notify()

    def _write_sourcecfg(self, index: int, value: int) -> None:
        mode = value if value in _MODES else _INACTIVE  # with the D bit set it is in none of them
        before, bit = self.sourcecfg[index], 2 << index
        self.sourcecfg[index] = mode
        self._index_mode(bit, mode)
        if mode == _INACTIVE:
            self._pending &= ~bit
            self._enabled &= ~bit
            self._set_target(index, 0)
        elif before == _INACTIVE:
            self._set_target(index, 1)
        self._follow_level(bit)
        self._notify()

    def _set_target(self, index: int, value: int) -> None:
        self._aim(2 << index, self.target[index], False)
        self.target[index] = value
        self._aim(2 << index, value, True)

    def _write_target(self, index: int, value: int) -> None:
        if 2 << index & self._active:
            self._set_target(index, value if value & _IPRIO else value | 1)
            self._notify()

    def _bit(self, number: int) -> int:
        """The bit of a source by the number a guest wrote; 0 when there is none."""
        return 1 << number if 1 <= number <= self._sources else 0

    def _set_pending(self, bits: int) -> None:
        self._pending |= bits & self._active & ~self._levels
        self._notify()

    def _clear_pending(self, bits: int) -> None:
        self._pending &= ~bits | self._levels
        self._notify()

    def _set_enabled(self, bits: int) -> None:
        self._enabled |= bits & self._active
        self._notify()

    def _clear_enabled(self, bits: int) -> None:
        self._enabled &= ~bits
        self._notify()

    def _read_setip(self, word: int) -> int:
        return self._pending >> 32 * word & _WORD

    def _write_setip(self, word: int, value: int) -> None:
        self._set_pending(value << 32 * word)

    def _write_setipnum(self, number: int) -> None:
        self._set_pending(self._bit(number))

    def _write_setipnum_be(self, number: int) -> None:
        self._set_pending(self._bit(int.from_bytes(number.to_bytes(4, "little"), "big")))

    def _read_in_clrip(self, word: int) -> int:
        return self._rectified() >> 32 * word & _WORD

    def _write_in_clrip(self, word: int, value: int) -> None:
        self._clear_pending(value << 32 * word)

    def _write_clripnum(self, number: int) -> None:
        self._clear_pending(self._bit(number))

    def _read_setie(self, word: int) -> int:
        return self._enabled >> 32 * word & _WORD

    def _write_setie(self, word: int, value: int) -> None:
        self._set_enabled(value << 32 * word)

    def _write_setienum(self, number: int) -> None:
        self._set_enabled(self._bit(number))

    def _write_clrie(self, word: int, value: int) -> None:
        self._clear_enabled(value << 32 * word)

    def _write_clrienum(self, number: int) -> None:
        self._clear_enabled(self._bit(number))

    def _write_idelivery(self, hart: int, value: int) -> None:
        self.idelivery[hart] = value
        self._notify()

    def _write_iforce(self, hart: int, value: int) -> None:
        self.iforce[hart] = value
        self._notify()

    def _write_ithreshold(self, hart: int, value: int) -> None:
        self.ithreshold[hart] = value
        self._notify()
