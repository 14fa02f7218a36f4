# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from fakes.lines import RecordingSignal
from fakes.plic import CORES

from pyvmm.devices.plic import Plic
from pyvmm.errors import BusError

PRIORITY, PENDING, ENABLE, THRESHOLD, CLAIM = 0x0, 0x1000, 0x2000, 0x20_0000, 0x20_0004


class Driver:
    """The guest's side: names for register accesses."""

    def __init__(self, core, sources: int = 31, harts: int = 2) -> None:
        self.signal = RecordingSignal()
        self.plic = Plic(core(self.signal, sources=sources, harts=harts))

    def priority(self, source, value):
        self.plic.write(PRIORITY + 4 * source, 4, value)

    def enable(self, context, *sources):
        words = [0] * 32
        for source in sources:
            words[source // 32] |= 1 << source % 32
        for word, value in enumerate(words):
            self.plic.write(ENABLE + 0x80 * context + 4 * word, 4, value)

    def threshold(self, context, value):
        self.plic.write(THRESHOLD + 0x1000 * context, 4, value)

    def claim(self, context=0):
        return self.plic.read(CLAIM + 0x1000 * context, 4)

    def complete(self, source, context=0):
        self.plic.write(CLAIM + 0x1000 * context, 4, source)

    def pending(self, word=0):
        return self.plic.read(PENDING + 4 * word, 4)


@pytest.fixture(params=CORES)
def core(request):
    return request.param


@pytest.fixture
def guest(core):
    """Sources 1 to 5 with priority 1, enabled on context 0."""
    driver = Driver(core)
    for source in range(1, 6):
        driver.priority(source, 1)
    driver.enable(0, 1, 2, 3, 4, 5)
    return driver


def test_level_source_goes_through_claim_and_complete(guest):
    line = guest.plic.line(3)
    line.set(True)
    assert (guest.signal.asserted, guest.pending()) == ({0}, 1 << 3)
    assert guest.claim() == 3
    assert (guest.signal.asserted, guest.pending()) == (set(), 0)
    line.set(False)
    guest.complete(3)
    assert (guest.claim(), guest.signal.calls) == (0, [(0, True), (0, False)])


def test_level_still_high_at_completion_pends_again(guest):
    guest.plic.line(3).set(True)
    guest.claim()
    assert guest.signal.asserted == set()
    guest.complete(3)
    assert guest.signal.asserted == {0}
    assert guest.claim() == 3


def test_level_that_falls_and_rises_between_claim_and_completion_pends_at_completion(guest):
    line = guest.plic.line(3)
    line.set(True)
    guest.claim()
    line.set(False)
    line.set(True)
    assert guest.pending() == 0
    guest.complete(3)
    assert guest.pending() == 1 << 3


def test_forwarded_request_is_not_taken_back_when_the_wire_falls(guest):
    line = guest.plic.line(3)
    line.set(True)
    line.set(False)
    assert guest.signal.asserted == {0}
    assert guest.claim() == 3
    guest.complete(3)
    assert guest.pending() == 0


def test_setting_a_level_twice_signals_once(guest):
    line = guest.plic.line(3)
    line.set(True)
    line.set(True)
    assert guest.signal.calls == [(0, True)]


def test_edge_source_is_not_pending_again_after_completion(guest):
    line = guest.plic.line(4, edge=True)
    line.set(True)
    assert guest.claim() == 4
    guest.complete(4)
    assert guest.pending() == 0
    line.set(False)
    line.set(True)
    assert guest.claim() == 4


def test_edges_during_service_are_remembered_as_one(guest):
    line = guest.plic.line(4, edge=True)
    line.pulse()
    guest.claim()
    line.pulse()
    line.pulse()
    assert guest.pending() == 0
    guest.complete(4)
    assert guest.claim() == 4
    guest.complete(4)
    assert guest.pending() == 0


def test_edges_while_pending_are_the_same_request(guest):
    line = guest.plic.line(4, edge=True)
    line.pulse()
    line.pulse()
    guest.claim()
    guest.complete(4)
    assert guest.pending() == 0


def test_pulse_of_a_level_source_is_one_request(guest):
    guest.plic.line(3).pulse()
    assert guest.claim() == 3
    guest.complete(3)
    assert guest.pending() == 0


def test_claim_takes_the_highest_priority_and_the_lowest_of_equals(guest):
    for source, priority in ((1, 2), (2, 7), (3, 7), (4, 1), (5, 2)):
        guest.priority(source, priority)
        guest.plic.line(source).set(True)
    assert [guest.claim() for _ in range(6)] == [2, 3, 1, 5, 4, 0]


def test_claims_tell_all_priorities_apart(core):
    guest = Driver(core)
    guest.enable(0, *range(1, 8))
    for source in range(1, 8):
        guest.priority(source, source)
        guest.plic.line(source).set(True)
    assert [guest.claim() for _ in range(8)] == [7, 6, 5, 4, 3, 2, 1, 0]


def test_priority_zero_never_interrupts_and_is_never_claimed(guest):
    guest.priority(3, 0)
    guest.plic.line(3).set(True)
    assert guest.pending() == 1 << 3
    assert (guest.signal.asserted, guest.claim()) == (set(), 0)
    guest.priority(3, 1)
    assert guest.signal.asserted == {0}
    guest.priority(3, 0)
    assert guest.signal.asserted == set()


@pytest.mark.parametrize(("threshold", "asserted"), [(0, {0}), (2, {0}), (3, set()), (7, set())])
def test_threshold_masks_priorities_up_to_it(guest, threshold, asserted):
    guest.priority(2, 3)
    guest.threshold(0, threshold)
    guest.plic.line(2).set(True)
    assert guest.signal.asserted == asserted


def test_threshold_change_takes_effect_at_once(guest):
    guest.plic.line(2).set(True)
    guest.threshold(0, 1)
    assert guest.signal.asserted == set()
    guest.threshold(0, 0)
    assert guest.signal.asserted == {0}


def test_claim_is_not_affected_by_the_threshold(guest):
    guest.threshold(0, 7)
    guest.plic.line(2).set(True)
    assert (guest.signal.asserted, guest.claim()) == (set(), 2)


def test_priorities_and_thresholds_keep_three_bits(guest):
    guest.priority(2, 0xFFFF_FFFF)
    guest.threshold(1, 0xFFFF_FFF9)
    assert (guest.plic.read(8, 4), guest.plic.read(THRESHOLD + 0x1000, 4)) == (7, 1)


def test_every_context_that_enables_a_source_is_notified_and_the_first_claims(guest):
    guest.enable(1, 2)
    guest.plic.line(2).set(True)
    assert guest.signal.asserted == {0, 1}
    assert (guest.claim(1), guest.claim(0)) == (2, 0)
    assert guest.signal.asserted == set()


def test_contexts_have_thresholds_of_their_own(guest):
    guest.enable(1, 2)
    guest.threshold(0, 7)
    guest.plic.line(2).set(True)
    assert guest.signal.asserted == {1}


def test_disabling_a_pending_source_lowers_the_output(guest):
    guest.plic.line(2).set(True)
    guest.enable(0, 1)
    assert (guest.signal.asserted, guest.claim(), guest.pending()) == (set(), 0, 4)
    guest.enable(0, 2)
    assert guest.signal.asserted == {0}


def test_completion_of_a_source_not_enabled_for_the_context_is_ignored(guest):
    guest.plic.line(2).set(True)
    guest.claim()
    guest.complete(2, context=1)
    guest.enable(0)
    guest.complete(2)
    assert guest.pending() == 0
    guest.enable(0, 2)
    guest.complete(2)
    assert guest.pending() == 4


def test_completion_by_another_context_that_has_it_enabled_counts(guest):
    guest.enable(1, 2)
    guest.plic.line(2).set(True)
    guest.claim(0)
    guest.complete(2, context=1)
    assert guest.claim(1) == 2


@pytest.mark.parametrize("number", [0, 5, 6, 31, 32, 1023, 1024, 0xFFFF_FFFF])
def test_completion_of_what_was_not_claimed_changes_nothing(guest, number):
    guest.plic.line(5).set(True)
    before = guest.plic.state()
    guest.complete(number)
    assert guest.plic.state() == before


def test_source_zero_and_sources_beyond_the_last_cannot_be_enabled(core):
    guest = Driver(core, sources=40)
    guest.plic.write(ENABLE, 4, 0xFFFF_FFFF)
    guest.plic.write(ENABLE + 4, 4, 0xFFFF_FFFF)
    guest.plic.write(ENABLE + 0x7C, 4, 0xFFFF_FFFF)
    guest.priority(0, 7)
    assert [guest.plic.read(ENABLE + 4 * word, 4) for word in (0, 1, 31)] == [0xFFFF_FFFE, 0x1FF, 0]
    assert guest.plic.read(0, 4) == 0


def test_registers_of_contexts_and_sources_that_are_not_there_are_odd(guest):
    for offset in (4 * 32, PENDING + 4, ENABLE + 0x100, THRESHOLD + 0x2000, CLAIM + 0x2000):
        guest.plic.write(offset, 4, 1)
        assert guest.plic.read(offset, 4) == 0
    assert guest.plic.odd == 10


def test_largest_plic_reaches_its_last_source_and_context(core):
    guest = Driver(core, sources=1023, harts=128)
    guest.priority(1023, 1)
    guest.enable(127, 1023)
    guest.plic.line(1023).set(True)
    assert guest.signal.asserted == {127}
    assert guest.pending(31) == 1 << 31
    assert guest.claim(127) == 1023


@pytest.mark.parametrize("number", [0, 32, -1])
def test_line_of_a_source_that_is_not_there_is_refused(guest, number):
    with pytest.raises(BusError, match=rf"plic has sources 1 to 31; there is no source {number}\."):
        guest.plic.line(number)


def test_reset_lowers_outputs_and_forgets_all_but_the_wires(guest):
    guest.plic.line(2).set(True)
    guest.plic.line(4, edge=True).set(True)
    with guest.plic.lock:
        guest.plic.reset()
    assert guest.signal.asserted == set()
    assert (guest.pending(), guest.plic.read(8, 4), guest.plic.read(ENABLE, 4)) == (1 << 2, 0, 0)


@pytest.mark.parametrize("kind", CORES)
def test_state_of_either_core_is_taken_over_by_either(guest, kind):
    guest.plic.line(2).set(True)
    guest.plic.line(3).set(True)
    guest.claim()
    other = Driver(kind)
    other.plic.load_state(guest.plic.state())
    assert other.plic.state() == guest.plic.state()
    assert (other.signal.asserted, other.claim()) == ({0}, 3)


def test_restored_state_signals_the_harts_and_goes_on(guest, core):
    guest.enable(1, 5)
    for source in (2, 3, 5):
        guest.plic.line(source).set(True)
    guest.threshold(1, 3)
    guest.claim()
    other = Driver(core)
    other.plic.load_state(guest.plic.state())
    assert other.signal.asserted == {0}
    assert (other.claim(), other.claim(), other.claim()) == (3, 5, 0)
    other.complete(2)
    assert other.claim() == 2
