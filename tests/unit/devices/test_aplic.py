# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno

import pytest
from fakes.lines import RecordingSignal

from pyvmm.devices.aplic import Aplic
from pyvmm.errors import BusError, KvmError

DOMAINCFG, SOURCECFG, SETIP, SETIPNUM, IN_CLRIP, CLRIPNUM = 0x0, 0x4, 0x1C00, 0x1CDC, 0x1D00, 0x1DDC
SETIE, SETIENUM, CLRIE, CLRIENUM, SETIPNUM_LE, SETIPNUM_BE = 0x1E00, 0x1EDC, 0x1F00, 0x1FDC, 0x2000, 0x2004
GENMSI, TARGET = 0x3000, 0x3004
IDELIVERY, IFORCE, ITHRESHOLD, TOPI, CLAIMI = 0x4000, 0x4004, 0x4008, 0x4018, 0x401C

INACTIVE, DETACHED, EDGE1, EDGE0, LEVEL1, LEVEL0 = 0, 1, 4, 5, 6, 7
ACTIVE = [DETACHED, EDGE1, EDGE0, LEVEL1, LEVEL0]


class Driver:
    """The guest's side: names for register accesses. Starts as Linux leaves it after probing."""

    def __init__(self, sources: int = 31, harts: int = 2) -> None:
        self.signal = RecordingSignal()
        self.aplic = Aplic(self.signal, sources=sources, harts=harts)
        self.write(DOMAINCFG, 1 << 8)
        for hart in range(harts):
            self.write(IDELIVERY + 32 * hart, 1)

    def write(self, offset, value):
        self.aplic.write(offset, 4, value)

    def read(self, offset):
        return self.aplic.read(offset, 4)

    def configure(self, source, mode, hart=0, priority=1):
        self.write(SOURCECFG + 4 * (source - 1), mode)
        self.write(TARGET + 4 * (source - 1), hart << 18 | priority)
        self.write(SETIENUM, source)

    def mode(self, source):
        return self.read(SOURCECFG + 4 * (source - 1))

    def target(self, source):
        return self.read(TARGET + 4 * (source - 1))

    def claim(self, hart=0):
        return self.read(CLAIMI + 32 * hart)


@pytest.fixture
def guest():
    return Driver()


def test_level_source_is_pending_exactly_while_its_wire_is_high(guest):
    guest.configure(3, LEVEL1)
    line = guest.aplic.line(3)
    line.set(True)
    assert (guest.signal.asserted, guest.read(SETIP)) == ({0}, 8)
    assert (guest.claim(), guest.claim()) == (3 << 16 | 1, 3 << 16 | 1)
    assert guest.signal.asserted == {0}
    line.set(False)
    assert (guest.signal.asserted, guest.read(SETIP), guest.claim()) == (set(), 0, 0)


def test_inverted_level_source_is_pending_while_its_wire_is_low(guest):
    line = guest.aplic.line(3)
    guest.configure(3, LEVEL0)
    assert (guest.signal.asserted, guest.read(IN_CLRIP)) == ({0}, 8)
    line.set(True)
    assert (guest.signal.asserted, guest.read(IN_CLRIP)) == (set(), 0)


def test_edge_source_is_pending_from_its_edge_to_its_claim(guest):
    guest.configure(4, EDGE1)
    line = guest.aplic.line(4)
    line.set(True)
    assert guest.signal.asserted == {0}
    assert guest.claim() == 4 << 16 | 1
    assert (guest.signal.asserted, guest.read(SETIP)) == (set(), 0)
    line.set(False)
    assert guest.read(SETIP) == 0
    line.pulse()
    assert guest.read(SETIP) == 1 << 4


def test_falling_edge_source_ignores_the_rising_one(guest):
    guest.configure(4, EDGE0)
    line = guest.aplic.line(4)
    line.set(True)
    assert guest.read(SETIP) == 0
    line.set(False)
    assert guest.read(SETIP) == 1 << 4


def test_detached_source_ignores_its_wire_and_takes_writes(guest):
    guest.configure(4, DETACHED)
    guest.aplic.line(4).set(True)
    assert (guest.read(SETIP), guest.read(IN_CLRIP)) == (0, 0)
    guest.write(SETIPNUM, 4)
    assert guest.claim() == 4 << 16 | 1


def test_line_set_twice_signals_once(guest):
    guest.configure(3, LEVEL1)
    before = len(guest.signal.calls)
    guest.aplic.line(3).set(True)
    guest.aplic.line(3).set(True)
    assert guest.signal.calls[before:] == [(0, True)]


@pytest.mark.parametrize("mode", [LEVEL1, LEVEL0])
def test_level_pending_cannot_be_set_nor_cleared_by_writes(guest, mode):
    guest.configure(3, mode)
    line = guest.aplic.line(3)
    for wire in (True, False):
        line.set(wire)
        pending = guest.read(SETIP)
        for offset, value in ((SETIP, 8), (SETIPNUM, 3), (IN_CLRIP, 8), (CLRIPNUM, 3)):
            guest.write(offset, value)
            assert guest.read(SETIP) == pending


@pytest.mark.parametrize("mode", [DETACHED, EDGE1, EDGE0])
@pytest.mark.parametrize(
    ("offset", "value"), [(SETIP, 8), (SETIPNUM, 3), (SETIPNUM_LE, 3), (SETIPNUM_BE, 3 << 24)]
)
def test_pending_can_be_set_and_cleared_by_writes(guest, mode, offset, value):
    guest.configure(3, mode)
    guest.write(offset, value)
    assert (guest.read(SETIP), guest.signal.asserted) == (8, {0})
    guest.write(CLRIPNUM, 3)
    assert (guest.read(SETIP), guest.signal.asserted) == (0, set())
    guest.write(offset, value)
    guest.write(IN_CLRIP, 8)
    assert guest.read(SETIP) == 0


def test_enable_bits_set_and_clear_by_word_and_by_number(guest):
    for source in (1, 2, 3):
        guest.write(SOURCECFG + 4 * (source - 1), DETACHED)
    guest.write(SETIE, 0xFFFF_FFFF)
    assert guest.read(SETIE) == 0b1110
    guest.write(CLRIE, 0b0010)
    guest.write(CLRIENUM, 2)
    assert guest.read(SETIE) == 0b1000
    guest.write(SETIENUM, 1)
    assert guest.read(SETIE) == 0b1010
    assert guest.read(CLRIE) == 0


@pytest.mark.parametrize("offset", [SETIPNUM, CLRIPNUM, SETIENUM, CLRIENUM, SETIPNUM_LE, SETIPNUM_BE])
@pytest.mark.parametrize("number", [0, 7, 31, 32, 1023, 1024, 0xFFFF_FFFF, 7 << 24])
def test_numbers_of_no_active_source_are_ignored_and_read_zero(guest, offset, number):
    guest.configure(3, DETACHED)
    guest.write(SETIPNUM, 3)
    before = guest.aplic.state()
    guest.write(offset, number)
    assert guest.aplic.state() == before
    assert guest.read(offset) == 0


def test_inactive_source_has_no_bits_and_no_target(guest):
    guest.aplic.line(3).set(True)
    for offset, value in ((SETIP, 8), (SETIE, 8), (TARGET + 8, 5)):
        guest.write(offset, value)
        assert guest.read(offset) == 0
    assert guest.read(IN_CLRIP) == 0


@pytest.mark.parametrize("mode", ACTIVE)
def test_making_a_source_inactive_clears_it(guest, mode):
    guest.configure(3, mode, hart=1, priority=9)
    guest.aplic.line(3).set(True)
    guest.write(SETIPNUM, 3)
    guest.write(SOURCECFG + 8, INACTIVE)
    assert [guest.read(offset) for offset in (SETIP, SETIE, TARGET + 8, IN_CLRIP)] == [0, 0, 0, 0]
    assert guest.signal.asserted == set()


@pytest.mark.parametrize("value", [2, 3, 1 << 10, 1 << 10 | LEVEL1])
def test_reserved_modes_and_delegation_read_back_inactive(guest, value):
    guest.configure(3, LEVEL1)
    guest.write(SOURCECFG + 8, value)
    assert guest.mode(3) == 0


def test_source_that_becomes_level_sensitive_is_pending_at_once_when_high(guest):
    guest.aplic.line(3).set(True)
    guest.configure(3, LEVEL1)
    assert guest.signal.asserted == {0}


def test_source_that_becomes_edge_sensitive_waits_for_an_edge(guest):
    guest.aplic.line(3).set(True)
    guest.configure(3, EDGE1)
    assert (guest.read(IN_CLRIP), guest.read(SETIP)) == (8, 0)


def test_new_active_source_is_aimed_at_hart_0_with_priority_1(guest):
    guest.write(SOURCECFG + 8, EDGE1)
    assert guest.target(3) == 1


@pytest.mark.parametrize(
    ("written", "expected"), [(0, 1), (0xFF, 0xFF), (1 << 18, 1 << 18 | 1), (0xFFFF_FFFF, 0xFFFC_00FF)]
)
def test_target_keeps_hart_and_a_priority_that_is_not_zero(guest, written, expected):
    guest.write(SOURCECFG, EDGE1)
    guest.write(TARGET, written)
    assert guest.target(1) == expected


def test_interrupt_goes_to_its_hart_only_and_follows_a_new_target(guest):
    guest.configure(3, LEVEL1, hart=1)
    guest.aplic.line(3).set(True)
    assert (guest.signal.asserted, guest.claim(0)) == ({1}, 0)
    guest.write(TARGET + 8, 1)
    assert (guest.signal.asserted, guest.claim(1)) == ({0}, 0)


def test_interrupt_for_a_hart_that_does_not_exist_goes_nowhere(guest):
    guest.configure(3, LEVEL1, hart=0x3FFF)
    guest.aplic.line(3).set(True)
    assert guest.signal.asserted == set()


def test_claim_takes_the_lowest_priority_number_and_the_lowest_source_of_equals(guest):
    for source, priority in ((1, 5), (2, 3), (3, 3), (4, 255)):
        guest.configure(source, DETACHED, priority=priority)
        guest.write(SETIPNUM, source)
    assert guest.read(TOPI) == 2 << 16 | 3
    assert [guest.claim() >> 16 for _ in range(5)] == [2, 3, 1, 4, 0]


@pytest.mark.parametrize(("threshold", "asserted"), [(0, {0}), (6, {0}), (5, set()), (1, set())])
def test_threshold_admits_priority_numbers_below_it(guest, threshold, asserted):
    guest.configure(3, LEVEL1, priority=5)
    guest.write(ITHRESHOLD, threshold)
    guest.aplic.line(3).set(True)
    assert guest.signal.asserted == asserted
    assert bool(guest.read(TOPI)) == bool(asserted)


def test_delivery_needs_domain_enable_and_idc_delivery(guest):
    guest.configure(3, LEVEL1)
    guest.aplic.line(3).set(True)
    for offset, on in ((DOMAINCFG, 1 << 8), (IDELIVERY, 1)):
        guest.write(offset, 0)
        assert (guest.signal.asserted, guest.read(TOPI)) == (set(), 3 << 16 | 1)
        guest.write(offset, on)
        assert guest.signal.asserted == {0}


def test_iforce_interrupts_until_a_claim_returns_zero(guest):
    guest.write(IFORCE + 32, 0xFFFF_FFFF)
    assert (guest.signal.asserted, guest.read(IFORCE + 32), guest.read(TOPI + 32)) == ({1}, 1, 0)
    assert guest.claim(1) == 0
    assert (guest.signal.asserted, guest.read(IFORCE + 32)) == (set(), 0)


def test_iforce_survives_a_claim_that_returns_something(guest):
    guest.configure(3, EDGE1)
    guest.aplic.line(3).set(True)
    guest.write(IFORCE, 1)
    assert guest.claim() != 0
    assert guest.signal.asserted == {0}


def test_domaincfg_has_only_its_enable_bit_writable(guest):
    guest.write(DOMAINCFG, 0xFFFF_FFFF)
    assert guest.read(DOMAINCFG) == 0x8000_0100
    guest.write(DOMAINCFG, 0)
    assert guest.read(DOMAINCFG) == 0x8000_0000


@pytest.mark.parametrize(
    "offset", [GENMSI, 0x1BC0, 0x1BC8, 0x400C, TOPI, CLAIMI, IDELIVERY + 64, SOURCECFG + 124]
)
def test_writes_to_what_is_not_there_or_read_only_change_nothing(guest, offset):
    before = guest.aplic.state()
    guest.write(offset, 0xFFFF_FFFF)
    assert guest.aplic.state() == before
    assert guest.read(offset) == 0


def test_largest_aplic_reaches_its_last_source_and_hart():
    guest = Driver(sources=1023, harts=128)
    guest.configure(1023, LEVEL1, hart=127)
    guest.aplic.line(1023).set(True)
    assert guest.signal.asserted == {127}
    assert guest.read(SETIP + 4 * 31) == 1 << 31
    assert guest.claim(127) == 1023 << 16 | 1


@pytest.mark.parametrize("number", [0, 32])
def test_line_of_a_source_that_is_not_there_is_refused(guest, number):
    with pytest.raises(BusError, match=rf"aplic has sources 1 to 31; there is no source {number}\."):
        guest.aplic.line(number)


def test_reset_makes_all_inactive_and_lowers_outputs(guest):
    guest.configure(3, LEVEL1)
    guest.aplic.line(3).set(True)
    with guest.aplic.lock:
        guest.aplic.reset()
    assert guest.signal.asserted == set()
    assert [guest.read(offset) for offset in (DOMAINCFG, SETIP, SETIE)] == [0x8000_0000, 0, 0]
    guest.write(DOMAINCFG, 1 << 8)
    guest.write(IDELIVERY, 1)
    guest.configure(3, LEVEL1)
    assert guest.signal.asserted == {0}


def test_restored_state_signals_the_harts_and_goes_on(guest):
    guest.configure(3, LEVEL0, hart=1)
    guest.configure(4, EDGE1, priority=7)
    guest.aplic.line(4).pulse()
    other = Driver()
    other.aplic.load_state(guest.aplic.state())
    assert other.signal.asserted == {0, 1}
    other.aplic.line(3).set(True)
    assert (other.signal.asserted, other.claim(0)) == ({0}, 4 << 16 | 7)


def test_pulse_that_fails_leaves_the_wire_low():
    def signal(hart, asserted):
        if broken and asserted:
            raise KvmError("KVM_INTERRUPT", errno.EIO)

    broken = [True]
    aplic = Aplic(signal, sources=7, harts=1)
    for offset, value in [(DOMAINCFG, 1 << 8), (SOURCECFG + 4 * 2, EDGE1), (SETIENUM, 3), (IDELIVERY, 1)]:
        aplic.write(offset, 4, value)
    with pytest.raises(KvmError):
        aplic.line(3).pulse()
    broken.clear()
    assert aplic.read(CLAIMI, 4) >> 16 == 3
    aplic.line(3).pulse()
    assert aplic.read(CLAIMI, 4) >> 16 == 3
