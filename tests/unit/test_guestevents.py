# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest

from pyvmm import guestevents
from pyvmm.guestevents import Events


@pytest.fixture
def clock(monkeypatch):
    """The host's clocks, which stand still unless told otherwise."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(
        guestevents,
        "time",
        SimpleNamespace(monotonic=lambda: clock.now, time=lambda: 1_700_000_000 + clock.now),
    )
    return clock


def test_uptime_counts_from_the_first_start_and_events_carry_it(clock):
    events, seen = Events(), []
    events.subscribe(seen.append)
    clock.now = 103.0
    assert (events.uptime(), events.started_at) == (0.0, None)
    events.begin()
    clock.now = 105.5
    events.emit("paused")
    assert (events.uptime(), events.started_at) == (2.5, 1_700_000_103.0)
    assert seen == [{"event": "started", "time": 0.0}, {"event": "paused", "time": 2.5}]


def test_what_happens_before_the_start_happens_at_zero(clock):
    events, seen = Events(), []
    events.subscribe(seen.append)
    clock.now = 103.0
    events.emit("ended", reason="quit")
    assert seen == [{"event": "ended", "time": 0.0, "reason": "quit"}]
