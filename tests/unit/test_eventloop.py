# SPDX-License-Identifier: Apache-2.0
import os
import select
import threading
import time

import pytest

from pyvmm.eventloop import EventLoop, LoopClock

PATIENCE = 30  # seconds; only ever waited for when a test fails


@pytest.fixture
def errors():
    return []


@pytest.fixture
def loop(errors):
    loop = EventLoop(errors.append)
    yield loop
    loop.stop()


def wait(event):
    assert event.wait(PATIENCE)


def test_call_soon_runs_in_order_on_the_loop_thread(loop):
    seen, done = [], threading.Event()
    for number in range(200):
        loop.call_soon(lambda number=number: seen.append((number, threading.current_thread().name)))
    loop.call_soon(done.set)
    loop.start()
    wait(done)
    assert seen == [(number, "io") for number in range(200)]


def test_watch_calls_back_with_the_events_until_closed(loop):
    reader, writer = os.pipe()
    got, seen = threading.Event(), []

    def readable(events):
        seen.append((events, os.read(reader, 10)))
        watch.close()
        got.set()

    watch = loop.watch(reader, readable)
    loop.start()
    os.write(writer, b"one")
    wait(got)
    os.write(writer, b"two")
    later = threading.Event()
    loop.call_soon(lambda: loop.call_soon(later.set))
    wait(later)
    assert seen == [(select.EPOLLIN, b"one")]
    os.close(reader)
    os.close(writer)


def test_watch_of_a_regular_file_is_refused(loop, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with (tmp_path / "file").open() as file, pytest.raises(PermissionError):
        loop.watch(file.fileno(), lambda events: None)


def test_call_later_runs_in_order_of_time_and_not_when_cancelled(loop):
    seen, done = [], threading.Event()
    loop.call_later(0.02, lambda: (seen.append("late"), done.set()))
    loop.call_later(0.01, lambda: seen.append("never")).cancel()
    loop.call_later(0.0, lambda: seen.append("now"))
    loop.start()
    wait(done)
    assert seen == ["now", "late"]


def test_callback_that_raises_ends_the_loop_and_is_reported(loop, errors):
    loop.call_soon(lambda: 1 // 0)
    loop.start()
    loop._thread.join(PATIENCE)
    assert [type(error) for error in errors] == [ZeroDivisionError]


def test_clock_calls_back_once_the_wall_clock_is_there(loop):
    clock, done, at = LoopClock(loop), threading.Event(), []
    target = clock.now_ns() + 5_000_000
    clock.call_at(target, lambda: (at.append(time.time_ns()), done.set()))
    clock.call_at(0, lambda: at.append(0))
    loop.start()
    wait(done)
    assert at[0] == 0
    assert at[1] >= target - 1_000_000


def test_cancelled_timers_do_not_pile_up(loop):
    kept = loop.call_later(1000, lambda: None)
    for _ in range(10_000):
        loop.call_later(3600, lambda: None).cancel()
    assert len(loop._timers) < 200
    kept.cancel()
    kept.cancel()


def test_calls_after_the_end_are_dropped_and_write_to_nobody(errors):
    loop = EventLoop(errors.append)
    loop.start()
    loop.stop()
    reader, writer = os.pipe()  # which have the numbers of the loop's descriptors now
    os.set_blocking(reader, False)
    try:
        loop.call_soon(lambda: None)
        loop.call_later(0, lambda: None)
        with pytest.raises(BlockingIOError):
            os.read(reader, 8)
    finally:
        os.close(reader)
        os.close(writer)
