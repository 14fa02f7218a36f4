# SPDX-License-Identifier: Apache-2.0
import pytest
from fakes.lines import RecordingLine
from fakes.threads import AnnouncingCondition, Background, happens, in_time

from pyvmm.suspend import Suspension, WakingLine


@pytest.fixture
def suspension():
    suspension = Suspension()
    suspension._changed = AnnouncingCondition()
    yield suspension
    suspension.release()


@pytest.fixture
def line(suspension):
    return WakingLine(RecordingLine(7), suspension)


def sleeper(suspension):
    """A thread that is asleep in the suspension."""
    thread = Background(suspension.wait)
    happens(suspension._changed.waiting)
    return thread


def test_rising_wire_wakes(suspension, line):
    thread = sleeper(suspension)
    line.set(True)
    thread.result()


def test_pulse_wakes(suspension, line):
    thread = sleeper(suspension)
    line.pulse()
    thread.result()


def test_key_wakes(suspension):
    thread = sleeper(suspension)
    suspension.wake()
    thread.result()


def test_wire_that_is_high_already_keeps_it_awake(suspension, line):
    line.set(True)
    in_time(suspension.wait)


def test_every_wire_must_be_low_before_it_sleeps(suspension, line):
    other = WakingLine(RecordingLine(8), suspension)
    line.set(True)
    other.set(True)
    line.set(False)
    in_time(suspension.wait)
    other.set(False)
    sleeper(suspension)


def test_wire_that_was_high_wakes_when_it_rises_again(suspension, line):
    line.set(True)
    line.set(False)
    thread = sleeper(suspension)
    line.set(True)
    thread.result()


def test_falling_wire_does_not_wake(suspension, line):
    thread = sleeper(suspension)
    line.set(False)
    assert suspension._suspended
    assert thread.thread.is_alive()


def test_what_happened_before_it_slept_does_not_wake(suspension):
    suspension.wake()
    assert sleeper(suspension).thread.is_alive()


def test_release_wakes_and_nothing_sleeps_again(suspension):
    thread = sleeper(suspension)
    suspension.release()
    thread.result()
    in_time(suspension.wait)


def test_controller_hears_of_the_wire_before_the_guest_wakes(suspension):
    order = []
    inner = RecordingLine(7)
    inner.set = lambda level: order.append(("set", level))
    inner.pulse = lambda: order.append("pulse")
    suspension.wire = lambda number, level: order.append(("wire", number, level))
    suspension.wake = lambda: order.append("wake")
    line = WakingLine(inner, suspension)
    line.set(True)
    line.pulse()
    assert line.number == 7
    assert order == [("set", True), ("wire", 7, True), "pulse", "wake"]
