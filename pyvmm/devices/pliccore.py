# SPDX-License-Identifier: Apache-2.0
"""The core of a PLIC: gateways, arbitration, and the outputs to the harts.

``PlicCore`` is the specification of its twin, ``_native_plic.c``, and what a machine has where that was not
built. The registers are in ``pyvmm.devices.plic``, which also says what hostile guests can do.
"""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from pyvmm.devices.base import HartSignal

    class Core(Protocol):
        """What is behind the registers and the wires of a PLIC.

        ``lock`` is the device's. It is held around all but ``drive`` and ``pulse``, which any thread may call
        without it.
        Contexts, words of 32 bits and numbers are such as there are, but in ``complete``. Whatever may change
        an output may raise KvmError.
        """

        lock: threading.Lock
        sources: int
        contexts: int

        def drive(self, number: int, level: bool) -> None:
            """Set the wire of a source. Idempotent."""

        def pulse(self, number: int) -> None:
            """Set the wire high, unless it is, and then low, in one step."""

        def set_edge(self, number: int) -> None:
            """Take the source by its rising edge from now on."""

        def claim(self, context: int) -> int:
            """The source that the context gets, or 0."""

        def complete(self, context: int, number: int) -> None:
            """The context is done with ``number``, which may be any."""

        def pending(self, word: int) -> int:
            """A word of the pending bits."""

        def enabled(self, context: int, word: int) -> int:
            """A word of the context's enable bits."""

        def set_enabled(self, context: int, word: int, value: int) -> None:
            """Replace it, but for the bits of sources that are not there."""

        def set_priority(self, number: int, priority: int) -> None:
            """Set a source's priority, 0 to 7; 0 is never."""

        def set_threshold(self, context: int, threshold: int) -> None:
            """Notify the context only of what has a priority above this, 0 to 7."""

        def reset(self) -> None:
            """Power-on state. The wires stay as they are: a level that is high is pending again."""

        def bits(self) -> list[int]:
            """To be saved: level, pending, claimed and latched, then each context's enable bits."""

        def load(self, bits: list[int], priorities: list[int], thresholds: list[int]) -> None:
            """Take over what ``bits`` returned, in one step with the rest."""


MAX_PRIORITY = 7
_WORD = 0xFFFF_FFFF


class PlicCore:
    """See Core. Bit i of every bitmap is source i.

    ``signal`` is called with the lock held, so that harts see changes in the order in which they happened.
    """

    def __init__(self, signal: HartSignal, *, sources: int, harts: int) -> None:
        self.lock = threading.Lock()
        self.sources = sources
        self.contexts = harts
        self._signal = signal
        self._valid = (2 << sources) - 2
        self._edge = 0
        self._level = 0
        self._asserted = [False] * harts
        self.reset()

    def set_edge(self, number: int) -> None:
        """See Core."""
        self._edge |= 1 << number

    def reset(self) -> None:
        """See Core."""
        bits = [self._level, self._level & ~self._edge, 0, 0, *[0] * self.contexts]
        self.load(bits, [0] * (self.sources + 1), [0] * self.contexts)

    def bits(self) -> list[int]:
        """See Core."""
        return [self._level, self._pending, self._claimed, self._latched, *self._enabled]

    def load(self, bits: list[int], priorities: list[int], thresholds: list[int]) -> None:
        """See Core."""
        kept = [value & self._valid for value in bits]
        self._level, self._pending, self._claimed, self._latched, *self._enabled = kept
        self._threshold = list(thresholds)
        # _above[t]: sources whose priority is above t, so that arbitration is a handful of ANDs.
        self._above = [0] * (MAX_PRIORITY + 1)
        for number, priority in enumerate(priorities):
            if priority:
                self._index(number, priority)
        self._notify()

    def _index(self, number: int, priority: int) -> None:
        bit = 1 << number & self._valid
        for threshold in range(MAX_PRIORITY):
            if priority > threshold:
                self._above[threshold] |= bit
            else:
                self._above[threshold] &= ~bit

    def drive(self, number: int, level: bool) -> None:
        """See Core."""
        bit = 1 << number
        with self.lock:
            if bool(self._level & bit) == level:
                return
            self._level ^= bit
            if level:
                self._request(bit)

    def pulse(self, number: int) -> None:
        """See Core."""
        bit = 1 << number
        with self.lock:
            rises = not self._level & bit
            self._level &= ~bit
            if rises:
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
            asserted = bool(self._pending & enabled & self._above[self._threshold[context]])
            if asserted != self._asserted[context]:
                self._asserted[context] = asserted
                self._signal(context, asserted)

    def pending(self, word: int) -> int:
        """See Core."""
        return self._pending >> 32 * word & _WORD

    def enabled(self, context: int, word: int) -> int:
        """See Core."""
        return self._enabled[context] >> 32 * word & _WORD

    def set_enabled(self, context: int, word: int, value: int) -> None:
        """See Core."""
        others = self._enabled[context] & ~(_WORD << 32 * word)
        self._enabled[context] = (others | value << 32 * word) & self._valid
        self._notify()

    def set_priority(self, number: int, priority: int) -> None:
        """See Core."""
        self._index(number, priority)
        self._notify()

    def set_threshold(self, context: int, threshold: int) -> None:
        """See Core."""
        self._threshold[context] = threshold
        self._notify()

    def claim(self, context: int) -> int:
        """See Core."""
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

    def complete(self, context: int, number: int) -> None:
        """See Core."""
        if number > self.sources:
            return
        bit = 1 << number
        if not bit & self._enabled[context] & self._claimed:
            return
        self._claimed &= ~bit
        if bit & (self._latched | self._level & ~self._edge):
            self._latched &= ~bit
            self._request(bit)
