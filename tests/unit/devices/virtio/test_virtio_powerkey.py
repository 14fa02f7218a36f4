# SPDX-License-Identifier: Apache-2.0
"""The power key on a fake driver."""

import struct
import threading

import pytest
from fakes.virtio import Rig

from pyvmm.devices.virtio.powerkey import KEY_POWER, PowerKey

EVENTS, STATUS = 0, 1
PRESS = [(1, KEY_POWER, 1), (0, 0, 0), (1, KEY_POWER, 0), (0, 0, 0)]


@pytest.fixture
def rig():
    with Rig(PowerKey(threading.Lock())) as rig:
        yield rig


def press(rig):
    with rig.device.lock:
        told = rig.device.press()
    rig.loop.run()
    return told


def selected(rig, select, subsel):
    rig.device.write(0, 1, select)
    rig.device.write(1, 1, subsel)
    return bytes(rig.device.read(8 + at, 1) for at in range(rig.device.read(2, 1)))


def test_driver_finds_one_key_and_nothing_else(rig):
    assert selected(rig, 1, 0) == b"Power Button"
    assert int.from_bytes(selected(rig, 0x11, 1), "little") == 1 << KEY_POWER
    for select, subsel in (
        (0, 0),
        (1, 1),
        (2, 0),
        (3, 0),
        (0x10, 0),
        (0x11, 0),
        (0x11, 2),
        (0x12, 0),
        (255, 255),
    ):
        assert selected(rig, select, subsel) == b""
    assert rig.device.read(8, 1) == 0


def test_press_is_a_key_that_goes_down_and_up(rig):
    rig.start()
    for _ in range(8):
        rig.drivers[EVENTS].add_chain([], [8])
    rig.kick(EVENTS)
    assert press(rig)
    assert [struct.unpack("<HHI", done.data) for done in rig.drivers[EVENTS].collect()] == PRESS
    assert rig.interrupts.queues[EVENTS] >= 1
    assert press(rig)
    assert len(rig.drivers[EVENTS].collect()) == 4


def test_presses_while_nothing_runs_are_one(rig):
    rig.start()
    for _ in range(8):
        rig.drivers[EVENTS].add_chain([], [8])
    rig.kick(EVENTS)
    with rig.device.lock:
        assert all(rig.device.press() for _ in range(1000))
    assert len(rig.loop.calls) == 1
    rig.loop.run()
    assert len(rig.drivers[EVENTS].collect()) == 4


def test_press_that_a_reset_took_away_does_not_hold_up_the_next(rig):
    rig.start()
    with rig.device.lock:
        rig.device.press()
    rig.reset()
    rig.start()
    for _ in range(4):
        rig.drivers[EVENTS].add_chain([], [8])
    rig.kick(EVENTS)
    assert press(rig)
    assert len(rig.drivers[EVENTS].collect()) == 4


def test_press_without_a_driver_is_not_heard(rig):
    assert not press(rig)
    rig.start()
    rig.reset()
    assert not press(rig)


def test_press_without_buffers_is_lost_and_breaks_nothing(rig):
    rig.start()
    assert press(rig)
    rig.drivers[EVENTS].add_chain([], [3])
    assert press(rig)
    assert [done.data for done in rig.drivers[EVENTS].collect()] == [struct.pack("<HHI", *PRESS[0])[:3]]
    assert not rig.broken


def test_status_comes_back_unread(rig):
    rig.start()
    rig.drivers[STATUS].add_chain([bytes(8)], [])
    rig.kick(STATUS)
    assert [done.written for done in rig.drivers[STATUS].collect()] == [0]
