# SPDX-License-Identifier: Apache-2.0
"""The gate: shut, nothing comes through; open again, everything has come through, once and in order."""

import os
import threading
from collections import Counter
from functools import partial

import pytest
from fakes.loop import FakeLoop
from fakes.threads import happens
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from pyvmm.eventloop import EventLoop
from pyvmm.gate import Gate

FDS = 3


@pytest.fixture
def loop():
    return FakeLoop()


@pytest.fixture
def gate(loop):
    return Gate(loop)


@pytest.fixture
def eventfd():
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def test_open_gate_is_the_loop(gate, loop, eventfd):
    seen = []
    gate.call_soon(lambda: seen.append("call"))
    gate.call_later(1, lambda: seen.append("timer"))
    watch = gate.watch(eventfd, lambda events: (os.eventfd_read(eventfd), seen.append("event")))
    os.eventfd_write(eventfd, 1)
    loop.run()
    loop.advance(1)
    watch.close()
    os.eventfd_write(eventfd, 1)
    loop.run()
    assert seen == ["call", "event", "timer"]


def test_shut_gate_keeps_calls_in_their_order(gate, loop):
    seen = []
    gate.call_soon(lambda: seen.append(1))
    gate.shut()
    gate.call_soon(lambda: seen.append(2))
    loop.run()
    assert seen == []
    gate.call_soon(lambda: seen.append(3))  # the loop has not come to it when the gate opens
    gate.open()
    gate.call_soon(lambda: seen.append(4))
    loop.run()
    assert seen == [1, 2, 3, 4]


def test_shut_gate_watches_nothing_and_loses_no_event(gate, loop, eventfd):
    seen = []
    gate.watch(eventfd, lambda events: seen.append(os.eventfd_read(eventfd)))
    gate.shut()
    os.eventfd_write(eventfd, 3)
    loop.run()
    assert (seen, loop.watches) == ([], [])
    gate.open()
    loop.run()
    assert seen == [3]


def test_timer_that_comes_due_waits_and_one_that_is_cancelled_then_never_comes(gate, loop):
    seen = []
    gate.call_later(1, lambda: seen.append("kept"))
    cancelled = gate.call_later(1, lambda: seen.append("cancelled"))
    gate.shut()
    loop.advance(2)
    cancelled.cancel()
    gate.open()
    loop.run()
    assert seen == ["kept"]


def test_watch_that_was_closed_or_changed_while_shut_comes_back_so(gate, loop, eventfd):
    gate.shut()
    watch = gate.watch(eventfd, print)
    watch.modify(4)
    assert loop.watches == []
    gate.open()
    assert [(real.fd, real.events) for real in loop.watches] == [(eventfd, 4)]
    gate.shut()
    watch.close()
    gate.open()
    assert loop.watches == []


@pytest.mark.parametrize("shut", [False, True])
def test_regular_file_is_refused_as_the_loop_refuses_it(shut, tmp_path):
    loop = EventLoop(print)
    gate = Gate(loop)
    if shut:
        gate.shut()
    with (tmp_path / "file").open("w") as file, pytest.raises(PermissionError):
        gate.watch(file.fileno(), print)
    gate.open()
    loop.stop()


@pytest.mark.parametrize("shut", [False, True])
def test_second_watch_of_a_descriptor_is_refused_and_the_first_goes_on(shut, eventfd):
    loop = EventLoop(print)
    gate = Gate(loop)
    ready = threading.Event()
    gate.watch(eventfd, lambda events: (os.eventfd_read(eventfd), ready.set()))
    if shut:
        gate.shut()
    with pytest.raises(FileExistsError):
        gate.watch(eventfd, print)
    gate.open()
    loop.start()
    os.eventfd_write(eventfd, 1)
    happens(ready)
    loop.stop()


def test_descriptor_that_is_not_watched_again_holds_up_nothing_else(gate, loop, eventfd):
    other = os.dup(eventfd)
    done = []
    gate.watch(eventfd, print)
    gate.watch(other, lambda events: (os.eventfd_read(other), done.append("other")))
    gate.shut()
    gate.call_soon(lambda: done.append("call"))
    loop.run()
    watch = loop.watch

    def fail_once(*what):
        loop.watch = watch
        raise OSError(28, "No space left on device")

    loop.watch = fail_once
    with pytest.raises(OSError, match="No space left"):
        gate.open()
    os.eventfd_write(other, 1)
    loop.run()
    assert sorted(done) == ["call", "other"]
    os.close(other)


def test_settled_comes_after_the_callback_that_was_running():
    loop = EventLoop(print)
    gate = Gate(loop)
    loop.start()
    settled, over_then = [], []

    def callback():
        gate.shut()
        settled.append(gate.settled())
        over_then.append(settled[0].is_set())

    try:
        gate.call_soon(callback)
        happens(gate.settled())
        happens(settled[0])
        assert over_then == [False]
    finally:
        loop.stop()


class AnyInterleaving(RuleBasedStateMachine):
    """Calls, timers and events in any order with opening and shutting: none is lost, and none comes twice."""

    def __init__(self):
        super().__init__()
        self.loop = FakeLoop()
        self.gate = Gate(self.loop)
        self.fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(FDS)]
        self.is_shut = False
        self.ran, self.wanted, self.read, self.written = Counter(), Counter(), Counter(), Counter()
        self.timers, self.watches = {}, {}

    def note(self, name):
        assert not self.is_shut
        self.ran[name] += 1

    def readable(self, fd):
        assert not self.is_shut
        self.read[fd] += os.eventfd_read(fd)

    def promise(self):
        name = len(self.wanted)
        self.wanted[name] = 1
        return name

    @rule()
    def shut(self):
        self.gate.shut()
        self.is_shut = True

    @rule()
    def open(self):
        self.is_shut = False
        self.gate.open()

    @rule()
    def call(self):
        self.gate.call_soon(partial(self.note, self.promise()))

    @rule(seconds=st.floats(0, 1))
    def call_later(self, seconds):
        name = self.promise()
        self.timers[name] = self.gate.call_later(seconds, partial(self.note, name))

    @rule()
    def cancel(self):
        for name, timer in list(self.timers.items())[:1]:
            timer.cancel()
            self.wanted[name] = self.ran[name]
            del self.timers[name]

    @rule()
    def run_loop(self):
        self.loop.run()

    @rule(seconds=st.floats(0, 1))
    def advance(self, seconds):
        self.loop.advance(seconds)

    @rule(index=st.integers(0, FDS - 1))
    def watch(self, index):
        fd = self.fds[index]
        if fd not in self.watches:
            self.watches[fd] = self.gate.watch(fd, lambda events: self.readable(fd))

    @rule()
    def unwatch(self):
        for fd, watch in list(self.watches.items())[:1]:
            watch.close()
            del self.watches[fd]

    @rule(index=st.integers(0, FDS - 1))
    def event(self, index):
        self.written[self.fds[index]] += 1
        os.eventfd_write(self.fds[index], 1)

    def teardown(self):
        self.open()
        self.loop.run()
        self.loop.advance(2)
        for fd in self.fds:
            os.close(fd)
        assert +self.ran == +self.wanted
        assert all(self.read[fd] == self.written[fd] for fd in self.watches)


TestAnyInterleaving = AnyInterleaving.TestCase
