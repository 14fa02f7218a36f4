# SPDX-License-Identifier: Apache-2.0
import os
import random
import struct

import pytest
from fakes.virtio import RAM, Rig

from pyvmm.devices import settings
from pyvmm.devices.virtio import balloon as module
from pyvmm.devices.virtio.balloon import (
    F_DEFLATE_ON_OOM,
    F_PAGE_POISON,
    F_REPORTING,
    F_STATS_VQ,
    PAGE,
    Balloon,
)
from pyvmm.errors import ConfigError
from pyvmm.memory import MEMFD, GuestMemory

INFLATE, DEFLATE, STATS, REPORTING = range(4)
FREE = RAM + (2 << 20)  # nobody's rings or buffers are there


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def rig(request):
    with Rig(Balloon(), packed=request.param) as rig:
        yield rig


def pfns(*addresses):
    return struct.pack(f"<{len(addresses)}I", *(address // PAGE for address in addresses))


def send(rig, queue, *pieces):
    rig.drivers[queue].add_chain(pieces)
    rig.kick(queue)
    return [done.written for done in rig.drivers[queue].collect()]


def fill(rig, pages):
    rig.memory.write(FREE, b"x" * (pages * PAGE))


def kept(rig, pages):
    """Which of the pages at FREE still hold what was written."""
    return [index for index in range(pages) if rig.memory.read(FREE + index * PAGE, 1) == b"x"]


# Pages


def test_inflated_pages_go_back_to_the_host_and_no_others(rig):
    rig.start()
    fill(rig, 8)
    assert send(rig, INFLATE, pfns(FREE + 5 * PAGE, FREE + 2 * PAGE), pfns(FREE + 3 * PAGE)) == [0]
    assert kept(rig, 8) == [0, 1, 4, 6, 7]
    assert rig.device.discarded == 3 * PAGE


def test_pages_of_a_shared_bank_leave_its_file():
    memory = GuestMemory()
    bank = memory.add(RAM, 4 << 20, backing=MEMFD)
    with Rig(Balloon(), memory=memory) as rig:
        rig.start()
        fill(rig, 512)
        before = os.fstat(bank.fd).st_blocks
        send(rig, INFLATE, pfns(*range(FREE, FREE + 512 * PAGE, PAGE)))
        assert before - os.fstat(bank.fd).st_blocks == 512 * PAGE // 512
        assert kept(rig, 512) == []


def test_consecutive_pages_are_given_back_together(rig, monkeypatch):
    rig.start()
    calls = []
    monkeypatch.setattr(rig.memory, "discard", lambda gpa, size: calls.append((gpa, size)) or size)
    numbers = list(range(256))
    random.Random(1).shuffle(numbers)
    send(rig, INFLATE, pfns(*(FREE + PAGE * number for number in (*numbers, 300, 300))))
    assert calls == [(FREE, 256 * PAGE), (FREE + 300 * PAGE, PAGE)]


def test_pages_that_are_no_ram_are_counted_and_the_others_taken(rig):
    rig.start()
    fill(rig, 4)
    end = RAM + (4 << 20)
    array = pfns(FREE, end - PAGE, end, end + PAGE, 0) + struct.pack("<I", 0xFFFF_FFFF) + b"\1\2\3"
    assert send(rig, INFLATE, array) == [0]
    assert kept(rig, 4) == [1, 2, 3]
    assert rig.device.odd == 4
    assert rig.device.discarded == 2 * PAGE
    assert rig.broken == ""


def test_endless_array_is_cut_and_counted(rig):
    rig.start()
    rig.drivers[INFLATE].add_chain([(RAM, 4 << 20)] * 3)
    rig.kick(INFLATE)
    assert len(rig.drivers[INFLATE].collect()) == 1
    assert rig.device.odd >= 1
    assert rig.broken == ""


@pytest.mark.parametrize("queue", [INFLATE, DEFLATE])
def test_writable_or_empty_arrays_are_given_back(rig, queue):
    rig.start()
    rig.drivers[queue].add_chain([], [16])
    rig.drivers[queue].add_chain([(RAM, 0)])
    rig.kick(queue)
    assert [done.written for done in rig.drivers[queue].collect()] == [0, 0]


def test_deflating_leaves_pages_alone(rig):
    rig.start()
    fill(rig, 4)
    assert send(rig, DEFLATE, pfns(FREE, FREE + PAGE)) == [0]
    assert kept(rig, 4) == [0, 1, 2, 3]


def test_memory_the_host_refuses_to_take_is_no_error(rig, monkeypatch):
    rig.start()
    monkeypatch.setattr("pyvmm.memory._libc_madvise", lambda *_: -1)
    assert send(rig, INFLATE, pfns(FREE)) == [0]
    assert (rig.device.discarded, rig.device.odd) == (0, 0)


def test_reset_while_a_worker_takes_pages_drops_the_answer(rig):
    rig.start()
    rig.workers.held = True
    send(rig, INFLATE, pfns(FREE))
    with rig.core.lock:
        after = rig.core.write_status(0)
    rig.workers.release()
    after()
    rig.loop.run()
    assert rig.device.discarded == 0
    assert rig.drivers[INFLATE].collect() == []


# Free page reporting


def test_reported_pages_go_back_to_the_host(rig):
    rig.start()
    fill(rig, 8)
    rig.drivers[REPORTING].add_chain([], [(FREE + PAGE, 2 * PAGE), (FREE + 6 * PAGE, PAGE)])
    rig.kick(REPORTING)
    assert [done.written for done in rig.drivers[REPORTING].collect()] == [0]
    assert kept(rig, 8) == [0, 3, 4, 5, 7]
    assert rig.device.discarded == 3 * PAGE


def test_reported_pages_that_must_keep_their_poison_are_left_alone(rig):
    rig.start()
    rig.device.write(12, 4, 0xAAAA_AAAA)
    fill(rig, 2)
    rig.drivers[REPORTING].add_chain([], [(FREE, PAGE)])
    rig.kick(REPORTING)
    assert len(rig.drivers[REPORTING].collect()) == 1
    assert kept(rig, 2) == [0, 1]


@pytest.mark.parametrize(
    ("features", "poison"),
    [
        (1 << F_STATS_VQ | 1 << F_REPORTING, 0xAA),
        (1 << F_STATS_VQ | 1 << F_REPORTING | 1 << F_PAGE_POISON, 0),
    ],
)
def test_reported_pages_go_when_no_poison_was_agreed_or_it_is_zero(rig, features, poison):
    rig.start(features)
    rig.device.write(12, 4, poison)
    fill(rig, 2)
    rig.drivers[REPORTING].add_chain([], [(FREE, PAGE)])
    rig.kick(REPORTING)
    assert kept(rig, 2) == [1]


def test_odd_reports_are_given_back(rig):
    rig.start()
    fill(rig, 2)
    driver = rig.drivers[REPORTING]
    driver.add_chain([b"readable"])
    driver.add_chain([], [(FREE + 1, PAGE)])
    driver.add_chain([], [(FREE, 0)])
    rig.kick(REPORTING)
    assert len(driver.collect()) == 3
    assert kept(rig, 2) == [0, 1]


@pytest.mark.parametrize(
    ("features", "reporting"),
    [(1 << F_REPORTING, 2), (1 << F_REPORTING | 1 << F_STATS_VQ, 3)],
    ids=["without statistics", "with statistics"],
)
def test_queues_are_numbered_by_the_features_the_driver_took(rig, features, reporting):
    rig.start(features)
    fill(rig, 1)
    rig.drivers[reporting].add_chain([], [(FREE, PAGE)])
    rig.kick(reporting)
    assert kept(rig, 1) == []


def test_queue_without_a_role_is_ignored(rig):
    rig.start(0)
    for queue in (STATS, REPORTING):
        rig.drivers[queue].add_chain([b"x"], [(FREE, PAGE)])
        rig.kick(queue)
        assert rig.drivers[queue].collect() == []


# Target


def test_target_is_told_in_pages_with_an_interrupt(rig):
    rig.start()
    device = rig.device
    device.set_target((1 << 20) + 5)
    assert device.read(0, 4) == 256
    assert device.target == 1 << 20
    assert rig.interrupts.config == 1
    device.set_target(1 << 20)
    assert rig.interrupts.config == 1
    device.write(4, 4, 100)
    assert device.actual == 100 * PAGE


def test_target_stays_over_a_reset_and_actual_does_not(rig):
    rig.start()
    rig.device.set_target(8 * PAGE)
    rig.device.write(4, 4, 8)
    rig.reset()
    assert (rig.device.target, rig.device.actual) == (8 * PAGE, 0)


@pytest.mark.parametrize("target", [-1, (1 << 32) * PAGE])
def test_target_that_cannot_be_is_refused(rig, target):
    with pytest.raises(ConfigError, match="from 0 to"):
        rig.device.set_target(target)


# Statistics


def statistics(**values):
    return b"".join(
        struct.pack("<HQ", module.STATISTICS.index(name), value) for name, value in values.items()
    )


def test_statistics_are_known_by_name_once_the_driver_sent_them(rig):
    rig.start()
    assert rig.device.stats() == {}
    data = statistics(free=5 << 30, total=1 << 33) + struct.pack("<HQ", 99, 1)
    assert send(rig, STATS, data[:7], data[7:]) == []  # kept until new ones are wanted
    assert rig.device.stats() == {"free": 5 << 30, "total": 1 << 33}


def test_fresh_statistics_are_asked_for_by_returning_the_buffer(rig):
    rig.start()
    got = []
    send(rig, STATS, statistics(free=1))
    assert rig.device.request_stats(got.append)
    assert rig.device.request_stats(got.append)
    rig.loop.run()
    assert got == []
    assert len(rig.drivers[STATS].collect()) == 1
    send(rig, STATS, statistics(free=2))
    assert got == [{"free": 2}, {"free": 2}]
    assert rig.drivers[STATS].collect() == []


def test_statistics_asked_for_before_the_driver_sent_its_first_come_with_those(rig):
    rig.start()
    got = []
    assert rig.device.request_stats(got.append)
    rig.loop.run()
    send(rig, STATS, statistics(free=1))
    assert got == [{"free": 1}]


def test_statistics_without_a_driver_that_has_them_are_refused(rig):
    assert not rig.device.request_stats(pytest.fail)
    rig.start(0)
    assert not rig.device.request_stats(pytest.fail)


@pytest.mark.parametrize("queue_alone", [False, True])
def test_who_waits_for_statistics_hears_of_a_reset(rig, queue_alone):
    rig.start()
    got = []
    send(rig, STATS, statistics(free=1))
    rig.device.request_stats(got.append)
    rig.loop.run()
    if queue_alone:
        with rig.core.lock:
            rig.core.queue_select = STATS
            after = rig.core.disable_queue()
        after()
    else:
        rig.reset()
    assert got == [{}]


def test_driver_that_never_sends_statistics_is_asked_once_and_few_wait_for_it(rig):
    rig.start()
    got = []
    posted = len(rig.loop.calls)
    for _ in range(1000):
        assert rig.device.request_stats(got.append)
    assert len(rig.loop.calls) == posted + 1
    assert got == [{}] * 984
    rig.loop.run()
    send(rig, STATS, statistics(free=1))
    assert got[984:] == [{"free": 1}] * 16


@pytest.mark.parametrize("data", [b"", b"\0", b"\4\0", statistics(free=1) + b"\5", b"\xff" * 100_000])
def test_statistics_of_odd_sizes_do_no_harm(rig, data):
    rig.start()
    rig.drivers[STATS].add_chain([data] if data else [(RAM, 0)])
    rig.kick(STATS)
    assert rig.device.stats() in ({}, {"free": 1})
    assert rig.broken == ""
    assert rig.device.request_stats(lambda _: None)
    rig.loop.run()
    assert len(rig.drivers[STATS].collect()) == 1


def test_driver_that_sends_many_statistics_gets_all_but_one_back(rig):
    rig.start()
    for number in range(5):
        rig.drivers[STATS].add_chain([statistics(free=number)])
    rig.kick(STATS)
    assert len(rig.drivers[STATS].collect()) == 4
    assert rig.device.odd == 4
    assert rig.device.stats() == {"free": 4}


# What the user may say


def parse(body):
    return settings.parse(f"--balloon {body}", body, Balloon.SETTINGS, Balloon.POSITIONAL)


def test_settings_give_target_and_features():
    device = Balloon.open(parse("64M,deflate-on-oom"), None)
    assert device.target == 64 << 20
    assert device.offered() >> F_DEFLATE_ON_OOM & 1
    device = Balloon.open(parse(""), None)
    assert device.target == 0
    assert not device.offered() >> F_DEFLATE_ON_OOM & 1


def test_size_without_a_unit_is_in_mib_as_that_of_the_guests_memory():
    assert Balloon.open(parse("64"), None).target == 64 << 20
    with pytest.raises(
        ConfigError, match=r"size takes a size such as 512M or 2G \(a bare number is MiB\), not"
    ):
        parse("64X")


def test_setting_beyond_all_memory_is_refused_as_it_was_spelled():
    with pytest.raises(ConfigError, match="--balloon 999999999G: A balloon holds from 0 to just under 16T"):
        Balloon.open(parse("999999999G"), None)


def test_state_goes_over_to_another_balloon(rig):
    rig.start()
    rig.device.write(4, 4, 77)
    rig.device.write(12, 4, 0xAA)
    other = Balloon()
    other.load_state(rig.device.state())
    assert other.actual == 77 * PAGE
    assert other.state() == rig.device.state()
