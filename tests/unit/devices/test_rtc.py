# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from fakes.clock import FakeClock
from fakes.lines import RecordingLine

from pyvmm.devices.rtc import GoldfishRtc

TIME_LOW, TIME_HIGH, ALARM_LOW, ALARM_HIGH = 0x00, 0x04, 0x08, 0x0C
IRQ_ENABLED, CLEAR_ALARM, ALARM_STATUS, CLEAR_INTERRUPT = 0x10, 0x14, 0x18, 0x1C

SECOND = 10**9
DAY = 24 * 3600 * SECOND
NOW = 1_700_000_000 * SECOND


class Driver:
    """The guest's side, in the order of accesses that Linux uses."""

    def __init__(self, now_ns: int = NOW) -> None:
        self.irq = RecordingLine()
        self.clock = FakeClock(now_ns)
        self.rtc = GoldfishRtc(self.irq, self.clock)

    def read(self, offset):
        return self.rtc.read(offset, 4)

    def write(self, offset, value):
        self.rtc.write(offset, 4, value)

    def time(self):
        low = self.read(TIME_LOW)
        return self.read(TIME_HIGH) << 32 | low

    def set_time(self, ns):
        self.write(TIME_HIGH, ns >> 32)
        self.write(TIME_LOW, ns & 0xFFFF_FFFF)

    def set_alarm(self, ns):
        self.write(ALARM_HIGH, ns >> 32)
        self.write(ALARM_LOW, ns & 0xFFFF_FFFF)
        self.write(IRQ_ENABLED, 1)


@pytest.fixture
def guest():
    return Driver()


def test_time_is_the_clocks(guest):
    assert guest.time() == NOW
    guest.clock.advance(5)
    assert guest.time() == NOW + 5


def test_high_half_is_latched_by_reading_the_low_one():
    guest = Driver((5 << 32) - 1)
    assert guest.read(TIME_LOW) == 0xFFFF_FFFF
    guest.clock.advance(1)
    assert guest.read(TIME_HIGH) == 4
    assert (guest.read(TIME_LOW), guest.read(TIME_HIGH)) == (0, 5)


@pytest.mark.parametrize("ns", [0, 1, NOW - 7 * DAY, NOW + 7 * DAY, 2**64 - 1])
def test_time_set_by_the_guest_goes_on_from_there(guest, ns):
    guest.set_time(ns)
    assert guest.time() == ns
    guest.clock.advance(3)
    assert guest.time() == (ns + 3) % 2**64


def test_time_is_set_by_the_low_half_only(guest):
    guest.write(TIME_HIGH, 1)
    assert guest.time() == NOW


def test_alarm_interrupts_when_due_and_not_before(guest):
    guest.set_alarm(NOW + 10 * SECOND)
    assert guest.read(ALARM_STATUS) == 1
    guest.clock.advance(10 * SECOND - 1)
    assert not guest.irq.level
    guest.clock.advance(1)
    assert (guest.irq.level, guest.read(ALARM_STATUS)) == (True, 0)
    guest.write(CLEAR_INTERRUPT, 1)
    assert not guest.irq.level


def test_alarm_reads_back(guest):
    guest.set_alarm(NOW + 1)
    assert guest.read(ALARM_HIGH) << 32 | guest.read(ALARM_LOW) == NOW + 1


@pytest.mark.parametrize("ns", [0, NOW - 1, NOW])
def test_alarm_that_is_past_fires_at_once(guest, ns):
    guest.set_alarm(ns)
    assert (guest.irq.level, guest.read(ALARM_STATUS), guest.clock.pending) == (True, 0, [])


def test_alarm_cleared_in_time_does_not_fire(guest):
    guest.set_alarm(NOW + SECOND)
    guest.write(CLEAR_ALARM, 1)
    guest.clock.advance(2 * SECOND)
    assert (guest.irq.level, guest.read(ALARM_STATUS)) == (False, 0)


def test_alarm_follows_the_time_the_guest_sets(guest):
    guest.set_time(1000 * SECOND)
    guest.set_alarm(1010 * SECOND)
    guest.clock.advance(9 * SECOND)
    assert not guest.irq.level
    guest.set_time(1010 * SECOND)
    assert guest.irq.level


def test_setting_the_time_back_delays_the_alarm(guest):
    guest.set_alarm(NOW + SECOND)
    guest.set_time(NOW - SECOND)
    guest.clock.advance(SECOND + SECOND // 2)
    assert not guest.irq.level
    guest.clock.advance(SECOND // 2)
    assert guest.irq.level


def test_disabled_interrupt_is_kept_until_enabled(guest):
    guest.write(ALARM_HIGH, 0)
    guest.write(ALARM_LOW, 0)
    assert not guest.irq.level
    guest.write(IRQ_ENABLED, 1)
    assert guest.irq.level
    guest.write(IRQ_ENABLED, 0)
    assert not guest.irq.level


def test_alarm_far_away_is_looked_at_daily_and_still_fires(guest):
    guest.set_alarm(NOW + 3 * DAY + 5)
    assert guest.clock.pending[0].when_ns == NOW + DAY
    guest.clock.advance(3 * DAY)
    assert not guest.irq.level
    guest.clock.advance(5)
    assert guest.irq.level


def test_farthest_alarm_sets_an_ordinary_timer(guest):
    guest.set_alarm(2**64 - 1)
    assert [timer.when_ns for timer in guest.clock.pending] == [NOW + DAY]


def test_many_alarms_leave_one_timer(guest):
    for i in range(100):
        guest.set_alarm(NOW + DAY - i)
    assert len(guest.clock.pending) == 1


def test_timer_that_was_cancelled_too_late_does_no_harm(guest):
    guest.set_alarm(NOW + SECOND)
    late = guest.clock.pending[0].callback
    guest.set_alarm(NOW + 2 * SECOND)
    late()
    assert not guest.irq.level
    assert len(guest.clock.pending) == 1
    guest.write(CLEAR_ALARM, 1)
    late()
    assert (guest.irq.level, guest.clock.pending) == (False, [])


def test_reset_returns_to_the_clocks_time_without_alarm(guest):
    guest.set_time(0)
    guest.set_alarm(0)
    guest.set_alarm(SECOND)
    with guest.rtc.lock:
        guest.rtc.reset()
    assert (guest.irq.level, guest.time(), guest.clock.pending) == (False, NOW, [])


def test_close_drops_the_timer(guest):
    guest.set_alarm(NOW + SECOND)
    guest.rtc.close()
    assert guest.clock.pending == []


def test_restored_state_keeps_offset_and_alarm(guest):
    guest.set_time(1000)
    guest.set_alarm(1000 + SECOND)
    other = Driver(NOW + SECOND // 2)
    other.rtc.load_state(guest.rtc.state())
    assert other.time() == 1000 + SECOND // 2
    other.clock.advance(SECOND // 2)
    assert other.irq.level


def test_devicetree_properties_follow_the_binding():
    node = {}
    GoldfishRtc.describe(node)
    assert node == {"compatible": "google,goldfish-rtc"}
