# SPDX-License-Identifier: Apache-2.0
"""Plays the same to PLICs with the core in C and with its twin, and compares what can be seen of them.

Steps are tuples: a method of ``Guest``, and its arguments.
"""

from __future__ import annotations

from typing import NamedTuple

from fakes.lines import RecordingSignal
from fakes.plic import CoreInC, answer_directly

from pyvmm.devices.plic import Plic
from pyvmm.devices.pliccore import PlicCore

PENDING, ENABLE, THRESHOLD, CLAIM, STRIDE = 0x1000, 0x2000, 0x20_0000, 0x20_0004, 0x1000
MOST_HARTS = 3
#: Sources with a wire, where a PLIC has them: few enough that operations meet, on both sides of the ends of
#: words, in registers and in C.
NUMBERS = (1, 2, 31, 32, 63, 64, 65, 127, 128, 1022, 1023)


class Make(NamedTuple):
    """A PLIC: how many sources and harts, which sources are edges, and the priorities of ``NUMBERS``."""

    sources: int
    harts: int
    edges: set[int]
    priorities: list[int]


class Guest:
    """Plays steps to a PLIC; ``seen`` is all that can be seen of it, after each.

    It enables everything first.
    """

    def __init__(self, core, make):
        self.signal = RecordingSignal()
        self.core = core(self.signal, sources=make.sources, harts=make.harts)
        self.plic = Plic(self.core)
        there = [number for number in NUMBERS if number <= make.sources]
        self.lines = [self.plic.line(number, edge=number in make.edges) for number in there]
        self.claimed = []
        self.seen = []
        for number, priority in zip(NUMBERS, make.priorities, strict=True):
            self.write(4 * number, priority)
        for word in range(32 * make.harts):
            self.write(ENABLE + 4 * word, 2**32 - 1)

    def play(self, steps):
        for name, *arguments in steps:
            answer = getattr(self, name)(*arguments)
            self.seen.append((name, answer, self.plic.state(), list(self.signal.calls)))
        words = [self.plic.read(PENDING + 4 * word, 4) for word in range(32)]
        words += [self._enabled(4 * word) for word in range(32 * (MOST_HARTS + 1))]
        return self.seen, words, self.plic.odd

    def drive(self, index, level):
        self.lines[index % len(self.lines)].set(level)

    def pulse(self, index):
        self.lines[index % len(self.lines)].pulse()

    def write(self, offset, value):
        self.plic.write(offset, 4, value)

    def claim(self, offset, length):
        number = self.plic.read(CLAIM + offset, length)
        self.claimed.append(number)
        return number

    def complete(self, offset, length, number):
        self.plic.write(CLAIM + offset, length, number)

    def _enabled(self, offset):
        return self.plic.read(ENABLE + offset, 4)

    def complete_claimed(self, context):
        if self.claimed:
            self.complete(STRIDE * context, 4, self.claimed.pop(0))

    def reset(self):
        with self.plic.lock:
            self.plic.reset()

    def restore(self):
        with self.plic.lock:
            self.plic.load_state(self.plic.state())


class AnsweredDirectly(Guest):
    """As the run loop does it: what the C leaves alone goes to Python."""

    def claim(self, offset, length):
        number = answer_directly(*self.core.answer, offset, length, False, 0)
        if number is None:
            return super().claim(offset, length)
        self.claimed.append(number)
        return number

    def complete(self, offset, length, number):
        if answer_directly(*self.core.answer, offset, length, True, number) is None:
            super().complete(offset, length, number)

    def _enabled(self, offset):
        word = answer_directly(*self.core.answer_enable, offset, 4, False, 0)
        return super()._enabled(offset) if word is None else word


def check(make: Make, steps: list[tuple[object, ...]]) -> None:
    """Fails when the twins do not agree, whether or not claims and completions are answered directly."""
    in_python = Guest(PlicCore, make).play(steps)
    for guest in (Guest(CoreInC, make), AnsweredDirectly(CoreInC, make)):
        in_c = guest.play(steps)
        assert in_c == in_python, f"{make} {steps}\nin C:      {in_c}\nin Python: {in_python}"
