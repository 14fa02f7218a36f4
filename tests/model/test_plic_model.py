# SPDX-License-Identifier: Apache-2.0
"""The PLIC against a naive reading of the specification: a gateway object a source, loops, no bitmaps."""

from __future__ import annotations

from fakes.lines import RecordingSignal
from fakes.native import needs_native
from fakes.plic import CoreInC
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pyvmm.devices.plic import Plic
from pyvmm.devices.pliccore import PlicCore

SOURCES, HARTS = 40, 3  # more than one word of sources
PENDING, ENABLE, THRESHOLD, CLAIM = 0x1000, 0x2000, 0x20_0000, 0x20_0004

# Few enough that operations meet; both sides of a word boundary; numbers that do not exist.
source_numbers = st.sampled_from([1, 2, 31, 32, 40])
any_numbers = st.sampled_from([0, 1, 2, 31, 32, 40, 41, 1023, 1024, 2**32 - 1])
contexts = st.integers(0, HARTS - 1)


class Gateway:
    def __init__(self, edge):
        self.edge = edge
        self.wire = False
        self.busy = False  # from the request to the completion
        self.in_service = False
        self.again = False
        self.pending = False
        self.priority = 0

    def request(self):
        self.busy = self.pending = True

    def drive(self, level):
        rising = level and not self.wire
        self.wire = level
        if rising and not self.busy:
            self.request()
        elif rising and self.edge and self.in_service:
            self.again = True

    def claim(self):
        self.pending = False
        self.in_service = True

    def complete(self):
        self.in_service = self.busy = False
        if self.again or (self.wire and not self.edge):
            self.again = False
            self.request()


class PlicMachine(RuleBasedStateMachine):
    CORE = PlicCore

    @initialize(edges=st.sets(source_numbers))
    def build(self, edges):
        self.signal = RecordingSignal()
        self.plic = Plic(self.CORE(self.signal, sources=SOURCES, harts=HARTS))
        self.gateways = {n: Gateway(n in edges) for n in range(1, SOURCES + 1)}
        self.lines = {n: self.plic.line(n, edge=n in edges) for n in self.gateways}
        self.enabled = {context: set() for context in range(HARTS)}
        self.thresholds = dict.fromkeys(range(HARTS), 0)

    def claimable(self, context):
        """Source numbers the context could claim, in the order in which it would."""
        able = [n for n in self.enabled[context] if self.gateways[n].pending and self.gateways[n].priority]
        return sorted(able, key=lambda n: (-self.gateways[n].priority, n))

    @rule(number=source_numbers, level=st.booleans())
    def drive(self, number, level):
        self.lines[number].set(level)
        self.gateways[number].drive(level)

    @rule(number=source_numbers)
    def pulse(self, number):
        self.lines[number].pulse()
        self.gateways[number].drive(True)
        self.gateways[number].drive(False)

    @rule(number=source_numbers, value=st.integers(0, 9))
    def write_priority(self, number, value):
        self.plic.write(4 * number, 4, value)
        self.gateways[number].priority = value & 7

    @rule(context=contexts, value=st.integers(0, 9))
    def write_threshold(self, context, value):
        self.plic.write(THRESHOLD + 0x1000 * context, 4, value)
        self.thresholds[context] = value & 7

    @rule(context=contexts, word=st.integers(0, 2), numbers=st.sets(st.integers(0, 31)))
    def write_enable(self, context, word, numbers):
        self.plic.write(ENABLE + 0x80 * context + 4 * word, 4, sum(1 << n for n in numbers))
        kept = {n for n in self.enabled[context] if n // 32 != word}
        self.enabled[context] = kept | {32 * word + n for n in numbers if 32 * word + n in self.gateways}

    @rule(context=contexts, on=st.booleans())
    def enable_all_or_none(self, context, on):
        for word in range(2):
            self.write_enable(context, word, set(range(32)) if on else set())

    @rule(context=contexts)
    def claim(self, context):
        expected = next(iter(self.claimable(context)), 0)
        assert self.plic.read(CLAIM + 0x1000 * context, 4) == expected
        if expected:
            self.gateways[expected].claim()

    @rule(context=contexts, number=any_numbers)
    def complete(self, context, number):
        self.plic.write(CLAIM + 0x1000 * context, 4, number)
        if number in self.enabled[context] and self.gateways[number].in_service:
            self.gateways[number].complete()

    @rule()
    def reset(self):
        with self.plic.lock:
            self.plic.reset()
        for gateway in self.gateways.values():
            wire = gateway.wire
            gateway.__init__(gateway.edge)
            gateway.wire = wire
            if wire and not gateway.edge:
                gateway.request()
        self.enabled = {context: set() for context in range(HARTS)}
        self.thresholds = dict.fromkeys(range(HARTS), 0)

    @rule()
    def save_and_restore(self):
        saved = self.plic.state()
        edges = {n for n, gateway in self.gateways.items() if gateway.edge}
        self.signal = RecordingSignal()
        self.plic = Plic(self.CORE(self.signal, sources=SOURCES, harts=HARTS))
        self.lines = {n: self.plic.line(n, edge=n in edges) for n in self.gateways}
        self.plic.load_state(saved)

    @invariant()
    def outputs_agree(self):
        for context in range(HARTS):
            able = self.claimable(context)
            asserted = bool(able) and self.gateways[able[0]].priority > self.thresholds[context]
            assert (context in self.signal.asserted) is asserted

    @invariant()
    def signals_are_changes_only(self):
        last = dict.fromkeys(range(HARTS), False)
        for hart, asserted in self.signal.calls:
            assert asserted is not last[hart]
            last[hart] = asserted

    @invariant()
    def registers_agree(self):
        for word in range(2):
            numbers = range(32 * word, 32 * word + 32)
            pending = sum(1 << n % 32 for n in numbers if n in self.gateways and self.gateways[n].pending)
            assert self.plic.read(PENDING + 4 * word, 4) == pending
            for context, enabled in self.enabled.items():
                expected = sum(1 << n % 32 for n in numbers if n in enabled)
                assert self.plic.read(ENABLE + 0x80 * context + 4 * word, 4) == expected


class PlicInCMachine(PlicMachine):
    CORE = CoreInC


TestPlic = PlicMachine.TestCase
TestPlicInC = needs_native(PlicInCMachine.TestCase)
