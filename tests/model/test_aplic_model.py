# SPDX-License-Identifier: Apache-2.0
"""The APLIC in direct mode against a naive reading of the AIA specification: an object a source."""

from __future__ import annotations

from fakes.lines import RecordingSignal
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pyvmm.devices.aplic import Aplic

SOURCES, HARTS = 40, 3
DETACHED, EDGE1, EDGE0, LEVEL1, LEVEL0 = 1, 4, 5, 6, 7

source_numbers = st.sampled_from([1, 2, 31, 32, 40])
any_numbers = st.sampled_from([0, 1, 2, 31, 32, 40, 41, 1023, 1024, 2**32 - 1])
harts = st.integers(0, HARTS - 1)
words = st.dictionaries(st.integers(0, 1), st.sets(st.integers(0, 31)), min_size=1, max_size=1)


class Source:
    def __init__(self):
        self.wire = False
        self.mode = 0
        self.pending = self.enabled = False
        self.hart, self.priority = 0, 0

    @property
    def rectified(self):
        if self.mode in (EDGE1, LEVEL1):
            return self.wire
        return not self.wire if self.mode in (EDGE0, LEVEL0) else False

    @property
    def level(self):
        return self.mode in (LEVEL1, LEVEL0)

    def drive(self, wire):
        before = self.rectified
        self.wire = wire
        if self.level:
            self.pending = self.rectified
        elif self.rectified and not before:
            self.pending = True

    def configure(self, value):
        was_active = bool(self.mode)
        self.mode = value if value in (DETACHED, EDGE1, EDGE0, LEVEL1, LEVEL0) else 0
        if not self.mode:
            self.pending = self.enabled = False
            self.hart = self.priority = 0
        elif not was_active:
            self.hart, self.priority = 0, 1
        if self.level:
            self.pending = self.rectified

    def set_pending(self, value):
        if self.mode and not self.level:
            self.pending = value

    def set_enabled(self, value):
        self.enabled = value and bool(self.mode)

    def aim(self, value):
        if self.mode:
            self.hart, self.priority = value >> 18, value & 0xFF or 1


class AplicMachine(RuleBasedStateMachine):
    @initialize()
    def build(self):
        self.signal = RecordingSignal()
        self.aplic = Aplic(self.signal, sources=SOURCES, harts=HARTS)
        self.sources = {n: Source() for n in range(1, SOURCES + 1)}
        self.lines = {n: self.aplic.line(n) for n in self.sources}
        self.domain_enabled = False
        self.delivery = [0] * HARTS
        self.force = [0] * HARTS
        self.threshold = [0] * HARTS

    def write(self, offset, value):
        self.aplic.write(offset, 4, value)

    def read(self, offset):
        return self.aplic.read(offset, 4)

    def top(self, hart):
        able = [
            (source.priority, n)
            for n, source in self.sources.items()
            if source.pending and source.enabled and source.hart == hart
        ]
        if self.threshold[hart]:
            able = [entry for entry in able if entry[0] < self.threshold[hart]]
        return min(able, default=None)

    @rule(number=source_numbers, level=st.booleans())
    def drive(self, number, level):
        self.lines[number].set(level)
        self.sources[number].drive(level)

    @rule(number=source_numbers, value=st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 1 << 10 | 6]))
    def write_sourcecfg(self, number, value):
        self.write(4 * number, value)
        self.sources[number].configure(value)

    @rule(number=source_numbers, hart=st.integers(0, HARTS), priority=st.sampled_from([0, 1, 2, 3, 255]))
    def write_target(self, number, hart, priority):
        value = hart << 18 | priority
        self.write(0x3000 + 4 * number, value)
        self.sources[number].aim(value)

    @rule(mode=st.sampled_from([DETACHED, EDGE1, LEVEL1, LEVEL0]), hart=harts)
    def set_up_like_a_driver(self, mode, hart):
        for number in (1, 2, 31, 32, 40):
            self.write_sourcecfg(number, mode)
            self.write_target(number, hart, 1 + number % 3)
            self.write(0x1EDC, number)
            self.sources[number].set_enabled(True)
        self.write_domaincfg(True)
        self.write_idelivery(hart, True)

    def by_word(self, base, selected, change):
        for word, bits in selected.items():
            self.write(base + 4 * word, sum(1 << bit for bit in bits))
            for bit in bits:
                if 32 * word + bit in self.sources:
                    change(self.sources[32 * word + bit])

    def by_number(self, offset, number, change):
        self.write(offset, number)
        if number in self.sources:
            change(self.sources[number])

    @rule(selected=words, value=st.booleans())
    def write_pending_word(self, selected, value):
        self.by_word(0x1C00 if value else 0x1D00, selected, lambda source: source.set_pending(value))

    @rule(selected=words, value=st.booleans())
    def write_enable_word(self, selected, value):
        self.by_word(0x1E00 if value else 0x1F00, selected, lambda source: source.set_enabled(value))

    @rule(number=any_numbers, offset=st.sampled_from([0x1CDC, 0x2000]))
    def write_setipnum(self, number, offset):
        self.by_number(offset, number, lambda source: source.set_pending(True))

    @rule(number=any_numbers)
    def write_setipnum_be(self, number):
        self.write(0x2004, int.from_bytes(number.to_bytes(4, "big"), "little"))
        if number in self.sources:
            self.sources[number].set_pending(True)

    @rule(number=any_numbers)
    def write_clripnum(self, number):
        self.by_number(0x1DDC, number, lambda source: source.set_pending(False))

    @rule(number=any_numbers, value=st.booleans())
    def write_enable_number(self, number, value):
        offset = 0x1EDC if value else 0x1FDC
        self.by_number(offset, number, lambda source: source.set_enabled(value))

    @rule(on=st.booleans())
    def write_domaincfg(self, on):
        self.write(0, 0x8000_0004 | on << 8)
        self.domain_enabled = on

    @rule(hart=harts, on=st.booleans())
    def write_idelivery(self, hart, on):
        self.write(0x4000 + 32 * hart, on)
        self.delivery[hart] = on

    @rule(hart=harts, on=st.booleans())
    def write_iforce(self, hart, on):
        self.write(0x4004 + 32 * hart, on)
        self.force[hart] = on

    @rule(hart=harts, value=st.sampled_from([0, 1, 2, 3, 255]))
    def write_ithreshold(self, hart, value):
        self.write(0x4008 + 32 * hart, value)
        self.threshold[hart] = value

    @rule(hart=harts)
    def claim(self, hart):
        top = self.top(hart)
        assert self.read(0x401C + 32 * hart) == (top[1] << 16 | top[0] if top else 0)
        if top:
            self.sources[top[1]].set_pending(False)
        else:
            self.force[hart] = 0

    @rule()
    def save_and_restore(self):
        saved = self.aplic.state()
        self.signal = RecordingSignal()
        self.aplic = Aplic(self.signal, sources=SOURCES, harts=HARTS)
        self.lines = {n: self.aplic.line(n) for n in self.sources}
        self.aplic.load_state(saved)

    @invariant()
    def outputs_and_topi_agree(self):
        for hart in range(HARTS):
            top = self.top(hart)
            assert self.read(0x4018 + 32 * hart) == (top[1] << 16 | top[0] if top else 0)
            asserted = bool(self.domain_enabled and self.delivery[hart] and (self.force[hart] or top))
            assert (hart in self.signal.asserted) is asserted

    @invariant()
    def signals_are_changes_only(self):
        last = dict.fromkeys(range(HARTS), False)
        for hart, asserted in self.signal.calls:
            assert asserted is not last[hart]
            last[hart] = asserted

    def bits(self, word, of):
        numbers = range(32 * word, 32 * word + 32)
        return sum(1 << n % 32 for n in numbers if n in self.sources and of(self.sources[n]))

    @invariant()
    def registers_agree(self):
        for word in range(2):
            assert self.read(0x1C00 + 4 * word) == self.bits(word, lambda source: source.pending)
            assert self.read(0x1E00 + 4 * word) == self.bits(word, lambda source: source.enabled)
            assert self.read(0x1D00 + 4 * word) == self.bits(word, lambda source: source.rectified)
        for number, source in self.sources.items():
            assert self.read(4 * number) == source.mode
            assert self.read(0x3000 + 4 * number) == source.hart << 18 | source.priority


TestAplic = AplicMachine.TestCase
