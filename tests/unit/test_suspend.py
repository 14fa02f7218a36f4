# SPDX-License-Identifier: Apache-2.0
import threading

import pytest
from fakes.lines import RecordingLine
from fakes.threads import happens

from pyvmm.suspend import Suspension, WakingLine


class FakeHart:
    """A vCPU thread; ``reasons`` keep it parked."""

    def __init__(self):
        self.reasons = set()

    def park(self, reason):
        self.reasons.add(reason)

    def unpark(self, reason):
        self.reasons.remove(reason)


@pytest.fixture
def told():
    """What the guest was told by pulses and has not acknowledged."""
    return []


@pytest.fixture
def suspension(told):
    return Suspension(lambda: bool(told))


@pytest.fixture
def line(suspension):
    return WakingLine(RecordingLine(7), suspension)


@pytest.fixture
def hart():
    return FakeHart()


def test_hart_is_parked_until_it_is_woken(suspension, hart):
    suspension.begin(hart)
    assert hart.reasons
    suspension.wake()
    assert not hart.reasons


def test_rising_wire_wakes(suspension, line, hart):
    suspension.begin(hart)
    line.set(True)
    assert not hart.reasons


def test_pulse_wakes(suspension, line, hart):
    suspension.begin(hart)
    line.pulse()
    assert not hart.reasons


def test_waking_twice_wakes_once(suspension, hart):
    suspension.begin(hart)
    suspension.wake()
    suspension.wake()
    assert not hart.reasons


def test_wire_that_is_high_already_keeps_it_awake(suspension, line, hart):
    line.set(True)
    suspension.begin(hart)
    assert not hart.reasons


def test_pulse_that_was_not_acknowledged_keeps_it_awake(suspension, told, hart):
    told.append("queue")
    suspension.begin(hart)
    assert not hart.reasons
    told.clear()
    suspension.begin(hart)
    assert hart.reasons


def test_pulse_that_comes_while_it_looks_wakes(hart):
    class Line(RecordingLine):
        def pulse(self):
            pulsed.set()

    def look():
        device.start()
        happens(pulsed)
        return False

    pulsed, suspension = threading.Event(), Suspension(look)
    device = threading.Thread(target=WakingLine(Line(7), suspension).pulse)
    suspension.begin(hart)
    device.join()
    assert not hart.reasons


def test_every_wire_must_be_low_before_it_sleeps(suspension, line, hart):
    other = WakingLine(RecordingLine(8), suspension)
    line.set(True)
    other.set(True)
    line.set(False)
    suspension.begin(hart)
    assert not hart.reasons
    other.set(False)
    suspension.begin(hart)
    assert hart.reasons


def test_wire_that_was_high_wakes_when_it_rises_again(suspension, line, hart):
    line.set(True)
    line.set(False)
    suspension.begin(hart)
    line.set(True)
    assert not hart.reasons


def test_falling_wire_does_not_wake(suspension, line, hart):
    suspension.begin(hart)
    line.set(False)
    assert hart.reasons


def test_what_happened_before_it_slept_does_not_wake(suspension, hart):
    suspension.wake()
    suspension.begin(hart)
    assert hart.reasons


def test_release_wakes_and_nothing_sleeps_again(suspension, hart):
    suspension.begin(hart)
    suspension.release()
    assert not hart.reasons
    suspension.begin(hart)
    assert not hart.reasons


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
