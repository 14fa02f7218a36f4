# SPDX-License-Identifier: Apache-2.0
"""Worker threads: how many, what becomes of jobs that raise, and what stop waits for."""

import signal
import threading
import weakref

import pytest
from fakes.threads import PATIENCE, happens, in_time

from pyvmm.devices.disk import jobs
from pyvmm.workers import WorkerThreads


@pytest.fixture
def errors():
    return []


@pytest.fixture
def workers(errors):
    workers = WorkerThreads(errors.append, limit=3)
    yield workers
    in_time(workers.stop)


def names():
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("work-"))


def test_no_thread_exists_before_the_first_job(workers):
    assert names() == []


def test_jobs_that_block_run_side_by_side_up_to_the_limit(workers):
    meeting = threading.Barrier(3)
    met = threading.Semaphore(0)

    def job():
        meeting.wait(PATIENCE)
        met.release()

    for _ in range(6):
        workers.submit(job)
    for _ in range(6):
        assert met.acquire(timeout=PATIENCE)
    assert names() == ["work-0", "work-1", "work-2"]


def test_held_workers_finish_what_they_began_and_begin_nothing(workers):
    begun, go, done, later = (threading.Event() for _ in range(4))
    workers.submit(lambda: (begun.set(), happens(go), done.set()))
    happens(begun)
    workers.hold()
    workers.hold()
    workers.submit(later.set)
    assert not workers.idle(0)
    go.set()
    assert workers.idle(PATIENCE)
    assert done.is_set()
    assert not later.is_set()
    workers.release()
    workers.release()
    happens(later)


def test_stop_finishes_what_was_held(workers):
    later = threading.Event()
    workers.hold()
    workers.submit(later.set)
    in_time(workers.stop)
    assert later.is_set()


def test_two_disks_that_hang_leave_threads_for_other_devices(errors):
    workers = WorkerThreads(errors.append)
    go, done = threading.Event(), threading.Event()
    try:
        for _ in range(2 * jobs._RUNNERS):
            workers.submit(lambda: happens(go))
        workers.submit(done.set)
        happens(done)
    finally:
        go.set()
        in_time(workers.stop)
    assert errors == []


def test_one_thread_serves_jobs_that_come_one_after_the_other(workers):
    for _ in range(20):
        done = threading.Event()
        workers.submit(done.set)
        happens(done)
        in_time(lambda: wait_until_idle(workers))
    assert names() == ["work-0"]


def wait_until_idle(workers):
    while workers._unfinished:
        pass


def test_job_that_raises_is_reported_and_the_next_one_runs(workers, errors):
    fault = ValueError("a bug")

    def job():
        raise fault

    done = threading.Event()
    for _ in range(10):
        workers.submit(job)
    workers.submit(done.set)
    happens(done)
    in_time(workers.stop)
    assert errors == [fault] * 10


def test_stop_finishes_what_was_submitted(workers):
    entered, go = threading.Event(), threading.Event()
    done = []

    def first():
        entered.set()
        happens(go)

    for _ in range(3):
        workers.submit(first)
    for number in range(5):
        workers.submit(lambda number=number: done.append(number))
    happens(entered)
    go.set()
    in_time(workers.stop)
    assert sorted(done) == [0, 1, 2, 3, 4]
    assert names() == []


def test_stop_without_a_job_or_twice_does_nothing(errors):
    workers = WorkerThreads(errors.append)
    workers.stop()
    workers.stop()


def test_idle_thread_keeps_no_job_alive(workers):
    class Held:
        def __call__(self):
            pass

    job = Held()
    gone = threading.Event()
    weakref.finalize(job, gone.set)
    workers.submit(job)
    del job
    happens(gone)


def test_signals_are_blocked_in_workers(workers):
    masks = []
    done = threading.Event()

    def job():
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        done.set()

    workers.submit(job)
    happens(done)
    assert signal.SIGTERM in masks[0]
