# SPDX-License-Identifier: Apache-2.0
"""Platform-level interrupt controller: RISC-V PLIC specification 1.0.0, as SiFive's PLIC has it.

Points that the specification leaves open, or that are easily got wrong:

- Context n is S-mode of hart n. Priorities and thresholds have three bits, like SiFive's (Linux mutes a
  context with threshold 7).
- Every context that has a source enabled is notified; the first to claim gets it.
- The threshold masks the notification only. A claim ignores it, but never returns a source of priority 0.
- A request that reached the pending bit is not taken back when the wire falls.
- A gateway stays shut from request to completion. Of the edges that come between claim and completion it
  remembers one; those that come while the request is pending are the same request.
- A completion counts for whichever context has the source enabled, and is ignored otherwise.

What a hostile guest can do: claim, complete and mask in any order, for any number. Numbers are checked
before they become bits, and each register access costs a few operations on integers of 1024 bits per
context. A wire that a device holds high interrupts the guest forever, but nobody else.
"""

from __future__ import annotations

from pyvmm.devices.lines import InputLine, check_source
from pyvmm.mmio.regs import Field, RegArray, RegisterDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.base import HartSignal

MAX_SOURCES = 1023
MAX_CONTEXTS = 15872
_MAX_PRIORITY = 7
_WORD = 0xFFFF_FFFF


class Plic(RegisterDevice):
    """Sources 1 to ``sources``; one context a hart. Bit i of every bitmap is source i.

    Lock order: device, then this one. ``signal`` is called with the lock held, so that harts see changes in
    the order in which they happened; it must not call back.
    """

    NAME = "plic"
    SIZE = 0x400_0000
    STATE = ("_level", "_pending", "_claimed", "_latched", "_enabled")

    priority = RegArray(0x0, count=1024, fields={"level": Field(0, 3)}, on_write="_write_priority")
    pending = RegArray(0x1000, count=32, access="r", on_read="_read_pending")
    enable = RegArray(0x2000, count=32 * MAX_CONTEXTS, on_read="_read_enable", on_write="_write_enable")
    threshold = RegArray(
        0x20_0000,
        count=MAX_CONTEXTS,
        stride=0x1000,
        fields={"level": Field(0, 3)},
        on_write="_write_threshold",
    )
    claim = RegArray(0x20_0004, count=MAX_CONTEXTS, stride=0x1000, on_read="_claim", on_write="_complete")

    def __init__(self, signal: HartSignal, *, sources: int, harts: int) -> None:
        super().__init__(
            priority=sources + 1,
            pending=(sources >> 5) + 1,
            enable=32 * harts,
            threshold=harts,
            claim=harts,
        )
        self._signal = signal
        self._sources = sources
        self._valid = (2 << sources) - 2
        self._edge = 0
        self._level = 0
        self._asserted = [False] * harts
        self.reset()

    def line(self, number: int, *, edge: bool = False) -> InputLine:
        """The wire of source ``number``: level-sensitive, or taken by its rising edge.

        Raises BusError when there is no such source.
        """
        check_source(self.NAME, number, self._sources)
        if edge:
            self._edge |= 1 << number
        return InputLine(number, self._drive)

    def reset(self) -> None:
        """Power-on state. The wires stay as they are: a level that is high is pending again."""
        super().reset()
        self._pending = self._level & ~self._edge
        self._claimed = 0
        self._latched = 0
        self._enabled = [0] * len(self._asserted)
        self._restored()

    def _restored(self) -> None:
        # _above[t]: sources whose priority is above t, so that arbitration is a handful of ANDs.
        self._above = [0] * (_MAX_PRIORITY + 1)
        for number, priority in enumerate(self.priority):
            if priority:
                self._index(number, priority)
        self._notify()

    def _index(self, number: int, priority: int) -> None:
        bit = 1 << number & self._valid
        for threshold in range(_MAX_PRIORITY):
            if priority > threshold:
                self._above[threshold] |= bit
            else:
                self._above[threshold] &= ~bit

    def _drive(self, number: int, level: bool) -> None:
        bit = 1 << number
        with self.lock:
            if bool(self._level & bit) == level:
                return
            self._level ^= bit
            if level:
                self._request(bit)

    def _request(self, bit: int) -> None:
        """The gateway of ``bit`` saw its wire rise."""
        if self._claimed & bit:
            self._latched |= bit & self._edge
        elif not self._pending & bit:
            self._pending |= bit
            self._notify()

    def _notify(self) -> None:
        """Bring every context's output in line with its state."""
        for context, enabled in enumerate(self._enabled):
            asserted = bool(self._pending & enabled & self._above[self.threshold[context]])
            if asserted != self._asserted[context]:
                self._asserted[context] = asserted
                self._signal(context, asserted)

    def _write_priority(self, number: int, value: int) -> None:
        if number:
            self.priority[number] = value
            self._index(number, value)
            self._notify()

    def _read_pending(self, word: int) -> int:
        return self._pending >> 32 * word & _WORD

    def _read_enable(self, index: int) -> int:
        context, word = divmod(index, 32)
        return self._enabled[context] >> 32 * word & _WORD

    def _write_enable(self, index: int, value: int) -> None:
        context, word = divmod(index, 32)
        others = self._enabled[context] & ~(_WORD << 32 * word)
        self._enabled[context] = (others | value << 32 * word) & self._valid
        self._notify()

    def _write_threshold(self, context: int, value: int) -> None:
        self.threshold[context] = value
        self._notify()

    def _claim(self, context: int) -> int:
        bit = self._best(self._pending & self._enabled[context])
        if not bit:
            return 0
        self._pending &= ~bit
        self._claimed |= bit
        self._notify()
        return bit.bit_length() - 1

    def _best(self, candidates: int) -> int:
        """The bit of highest priority, the lowest of equals; 0 when all have priority 0."""
        for sources in reversed(self._above):
            best = candidates & sources
            if best:
                return best & -best
        return 0

    def _complete(self, context: int, number: int) -> None:
        if number > self._sources:
            return
        bit = 1 << number
        if not bit & self._enabled[context] & self._claimed:
            return
        self._claimed &= ~bit
        if bit & (self._latched | self._level & ~self._edge):
            self._latched &= ~bit
            self._request(bit)
