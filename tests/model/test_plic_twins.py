# SPDX-License-Identifier: Apache-2.0
"""The same for the PLIC's core in C and for its twin: nothing but time may tell them apart."""

from __future__ import annotations

from fakes.lines import RecordingSignal
from fakes.native import needs_native
from fakes.plic import CoreInC
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.devices.plic import Plic
from pyvmm.devices.pliccore import PlicCore

PENDING, ENABLE, THRESHOLD, CLAIM, STRIDE = 0x1000, 0x2000, 0x20_0000, 0x20_0004, 0x1000
MOST_HARTS = 3

# Few enough that operations meet; both sides of the words' ends, in registers and in C. A PLIC has those that
# are not above its last.
NUMBERS = (1, 2, 31, 32, 63, 64, 65, 127, 128, 1022, 1023)
numbers = st.sampled_from(NUMBERS)
any_numbers = st.one_of(
    numbers, st.sampled_from([0, 3, 41, 1024, 2**31, 2**32 - 1]), st.integers(0, 2**32 - 1)
)
contexts = st.integers(0, MOST_HARTS)  # the last is never there
values = st.one_of(st.integers(0, 9), st.just(2**32 - 1), st.integers(0, 2**32 - 1))
claims = st.builds(
    lambda context, lane: STRIDE * context + lane, contexts, st.sampled_from([0, 0, 0, 0, 1, 4, 8])
)
lengths = st.sampled_from([4, 4, 4, 4, 1, 2, 8])
steps = st.one_of(
    st.tuples(st.just("drive"), numbers, st.booleans()),
    st.tuples(st.just("drive"), numbers, st.booleans()),
    st.tuples(st.just("pulse"), numbers),
    st.tuples(st.just("write"), st.builds(lambda number: 4 * number, numbers), values),
    st.tuples(st.just("write"), st.builds(lambda context: THRESHOLD + STRIDE * context, contexts), values),
    st.tuples(
        st.just("write"),
        st.builds(lambda context, word: ENABLE + 0x80 * context + 4 * word, contexts, st.integers(0, 31)),
        values,
    ),
    st.tuples(st.just("claim"), st.builds(lambda context: STRIDE * context, contexts), st.just(4)),
    st.tuples(st.just("claim"), claims, lengths),
    st.tuples(st.just("complete"), claims, lengths, any_numbers),
    st.tuples(st.just("complete_claimed"), contexts),
    st.tuples(st.just("complete_claimed"), contexts),
    st.tuples(st.sampled_from(["reset", "restore"])),
)


class Guest:
    """Plays steps to a PLIC; ``seen`` is all that can be seen of it, after each.

    It enables everything first, with ``priorities``.
    """

    def __init__(self, core, sources, harts, edges, priorities):
        self.signal = RecordingSignal()
        self.core = core(self.signal, sources=sources, harts=harts)
        self.plic = Plic(self.core)
        there = [number for number in NUMBERS if number <= sources]
        self.lines = {number: self.plic.line(number, edge=number in edges) for number in there}
        self.claimed = []
        self.seen = []
        for number, priority in zip(NUMBERS, priorities, strict=True):
            self.write(4 * number, priority)
        for word in range(32 * harts):
            self.write(ENABLE + 4 * word, 2**32 - 1)

    def play(self, steps):
        for name, *arguments in steps:
            answer = getattr(self, name)(*arguments)
            self.seen.append((name, answer, self.plic.state(), list(self.signal.calls)))
        words = [self.plic.read(PENDING + 4 * word, 4) for word in range(32)]
        words += [self.plic.read(ENABLE + 4 * word, 4) for word in range(32 * (MOST_HARTS + 1))]
        return self.seen, words, self.plic.odd

    def drive(self, number, level):
        if number in self.lines:
            self.lines[number].set(level)

    def pulse(self, number):
        if number in self.lines:
            self.lines[number].pulse()

    def write(self, offset, value):
        self.plic.write(offset, 4, value)

    def claim(self, offset, length):
        number = self.plic.read(CLAIM + offset, length)
        self.claimed.append(number)
        return number

    def complete(self, offset, length, number):
        self.plic.write(CLAIM + offset, length, number)

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
        number = self.core.answer_directly(offset, length, False, 0)
        if number is None:
            return super().claim(offset, length)
        self.claimed.append(number)
        return number

    def complete(self, offset, length, number):
        if self.core.answer_directly(offset, length, True, number) is None:
            super().complete(offset, length, number)


@needs_native
@settings(max_examples=500, deadline=None)
@given(
    make=st.tuples(
        st.sampled_from([1, 31, 32, 40, 63, 64, 65, 127, 128, 1023]),
        st.integers(1, MOST_HARTS),
        st.sets(numbers),
        st.lists(st.integers(0, 7), min_size=len(NUMBERS), max_size=len(NUMBERS)),
    ),
    steps=st.lists(steps, max_size=50),
)
def test_core_in_c_does_what_its_twin_does(make, steps):
    in_python = Guest(PlicCore, *make).play(steps)
    assert Guest(CoreInC, *make).play(steps) == in_python
    assert AnsweredDirectly(CoreInC, *make).play(steps) == in_python
