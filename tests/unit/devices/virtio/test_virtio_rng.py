# SPDX-License-Identifier: Apache-2.0
"""virtio-rng on a fake driver: bytes, its rate, resets, and a greedy guest."""

import os
import re
import textwrap
from pathlib import Path

import pytest
from fakes.virtio import RAM, Rig, make_services

from pyvmm.devices.settings import parse
from pyvmm.devices.virtio.rng import Rng
from pyvmm.errors import ConfigError


@pytest.fixture(params=["split", "packed"])
def make_rig(request):
    rigs = []

    def make(rate=0):
        rigs.append(Rig(Rng(rate), packed=request.param == "packed"))
        rigs[-1].start()
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.__exit__()


def ask(rig, *sizes):
    """Offer one buffer of these sizes, and return what came back."""
    rig.drivers[0].add_chain([], sizes)
    rig.kick()
    return rig.drivers[0].collect()


def given(rig):
    return sum(done.written for done in rig.drivers[0].collect())


class TestBytes:
    def test_buffer_is_filled_from_the_hosts_generator(self, make_rig, monkeypatch):
        monkeypatch.setattr(os, "getrandom", lambda count: bytes(range(count)))
        ((_, written, data),) = ask(make_rig(), 10, 3, 19)
        assert (written, data) == (32, bytes(range(32)))

    def test_two_buffers_differ(self, make_rig):
        rig = make_rig()
        (first,), (second,) = ask(rig, 32), ask(rig, 32)
        assert first.data != second.data

    def test_driver_is_interrupted_once_for_what_comes_together(self, make_rig):
        rig = make_rig()
        for _ in range(3):
            rig.drivers[0].add_chain([], [64])
        rig.kick()
        assert given(rig) == 192
        assert rig.interrupts.queues == {0: 1}

    def test_there_is_no_configuration_space(self):
        assert (Rng.SIZE, Rng.registers(), Rng().offered()) == (0, (), 0)


class TestHostileGuest:
    def test_huge_buffer_gets_a_part(self, make_rig):
        rig = make_rig()
        rig.drivers[0].add_chain([], [(RAM + (1 << 20), 2 << 20)])
        rig.kick()
        assert given(rig) == 64 << 10

    def test_other_devices_have_their_turn_after_64_kib(self, make_rig):
        rig = make_rig()
        for _ in range(4):
            rig.drivers[0].add_chain([], [(RAM + (1 << 20), 32 << 10)])
        os.eventfd_write(rig.doorbells[0].fd, 1)
        rig.loop.run_once()
        assert given(rig) == 64 << 10
        rig.loop.run()
        assert given(rig) == 64 << 10

    @pytest.mark.parametrize("rate", [0, 100])
    def test_buffer_without_room_comes_back_empty(self, make_rig, rate):
        rig = make_rig(rate)
        rig.drivers[0].add_chain([b"readable"], [])
        rig.kick()
        assert [done.written for done in rig.drivers[0].collect()] == [0]
        assert ask(rig, 8)[0].written == 8

    def test_buffer_outside_of_memory_needs_a_reset(self, make_rig):
        rig = make_rig()
        rig.drivers[0].add_raw([(0x10, 64, 2)])
        rig.kick()
        assert rig.broken


class TestRate:
    def test_no_more_than_the_rate_comes_at_once_and_the_rest_later(self, make_rig):
        rig = make_rig(100)
        for _ in range(4):
            rig.drivers[0].add_chain([], [40])
        rig.kick()
        assert [done.written for done in rig.drivers[0].collect()] == [40, 40, 20]
        rig.loop.advance(0.9)
        assert given(rig) == 0
        rig.loop.advance(0.1)
        assert given(rig) == 40

    def test_kick_while_nothing_is_left_waits_for_the_next_period(self, make_rig):
        rig = make_rig(16)
        assert ask(rig, 16)[0].written == 16
        assert ask(rig, 8) == []
        rig.loop.advance(1)
        assert given(rig) == 8

    def test_what_was_not_asked_for_is_not_saved_up(self, make_rig):
        rig = make_rig(100)
        ask(rig, 50)
        rig.loop.advance(60)
        assert ask(rig, 500)[0].written == 100

    def test_idle_device_has_no_timer(self, make_rig):
        rig = make_rig(100)
        ask(rig, 50)
        rig.loop.advance(5)
        assert not [timer for timer in rig.loop.timers if timer.callback]

    def test_high_rate_does_not_lengthen_a_turn(self, make_rig):
        rig = make_rig(10 << 20)
        rig.drivers[0].add_chain([], [(RAM + (1 << 20), 2 << 20)])
        rig.kick()
        assert given(rig) == 64 << 10

    def test_reset_does_not_give_the_guest_more(self, make_rig):
        rig = make_rig(100)
        assert ask(rig, 100)[0].written == 100
        for _ in range(3):
            rig.reset()
            rig.drivers[0].reset()
            rig.start()
            assert ask(rig, 50) == []
        rig.loop.advance(1)
        assert given(rig) == 50


class TestResets:
    def test_reset_ends_the_wait(self, make_rig):
        rig = make_rig(10)
        ask(rig, 50)
        rig.reset()
        assert not [timer for timer in rig.loop.timers if timer.callback]

    def test_kick_after_the_end_does_nothing(self, make_rig):
        rig = make_rig()
        queue = rig.core.session.queues[0]
        rig.reset()
        rig.device.on_kick(queue)


def open_rng(body):
    return Rng.open(parse("--rng", body, Rng.SETTINGS, Rng.POSITIONAL), make_services())


def test_rate_of_the_user_is_kept():
    with Rig(open_rng("rate=1K")) as rig:
        rig.start()
        assert ask(rig, 4096)[0].written == 1024


def test_device_needs_no_settings():
    open_rng("").close()


def test_rate_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="a rate of 0 would give nothing; leave it out for no limit"):
        open_rng("rate=0")


def test_rate_that_is_no_size_is_refused():
    with pytest.raises(ConfigError, match="rate takes a size such as 4096, 64K or 512M"):
        open_rng("rate=fast")


def test_walk_through_in_the_documentation_quotes_the_sources():
    root = Path(__file__).parents[4]
    text = (root / "docs/adding-a-device.md").read_text()
    files = (
        "pyvmm/devices/virtio/rng.py",
        "pyvmm/devices/virtio/blk.py",
        "pyvmm/devices/__init__.py",
    )
    sources = "".join((root / name).read_text() for name in files).splitlines()
    *quoted, example = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(quoted) == 9
    for line in "".join(quoted).splitlines():
        assert line in sources
    names = {"Rig": Rig, "Rng": Rng}
    exec(textwrap.dedent(example), names)
    names["rig"].__exit__()
    assert names["written"] == 40
