# SPDX-License-Identifier: Apache-2.0
"""What a profile makes of what it saw; and that the sampler sees what a program does."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from benchmarks import profile, report, sampler
from benchmarks.sampler import CALL, GIL_WAIT, GUEST, IDLE, LOCK_WAIT, PYTHON, Program, Sampled, Samples

GIL = range(0x1000, 0x1100)
LOOP = "runner.VcpuThread._loop"
REST = "0x0 0x0 0x0 0x0 0x3fff0000 0x3fff8000"


@pytest.mark.parametrize(
    ("function", "call", "seen"),
    [
        (LOOP, "running\n", GUEST),
        (LOOP, f"29 0x7 0xae80 {REST}", IDLE),  # ioctl, and it sleeps there
        ("bus.Bus.write", f"29 0x7 0x4008ae6a {REST}", CALL),
        ("raw.Raw.pread", "running\n", CALL),
        ("raw.Raw.pread", "-1 0x3fff0000 0x3fff8000", CALL),  # a page is missing
        ("raw.Raw.pread", "", CALL),  # it has just ended
        ("bus.Bus.write", f"98 0x1040 0x80 {REST}", GIL_WAIT),  # futex
        ("bus.Bus.write", f"98 0x1100 0x80 {REST}", LOCK_WAIT),
        ("threading.Condition.wait", f"98 0x1100 0x80 {REST}", IDLE),
        ("threading.Condition.wait", f"98 0x1040 0x80 {REST}", GIL_WAIT),
        ("eventloop.EventLoop._run", f"22 0x4 0x5000 {REST}", IDLE),  # epoll_pwait
    ],
)
def test_state_is_told_by_the_system_call_and_the_function(function, call, seen):
    assert sampler.state(function, False, call, GIL) == seen


def test_thread_with_the_gil_runs_python():
    assert sampler.state(LOOP, True, f"98 0x1040 0x80 {REST}", GIL) == PYTHON


OURS = """\
10000-20000 r-xp 00000000 00:01 5 /usr/bin/python 3
20000-30000 rw-p 00010000 00:01 5 /usr/bin/python 3
30000-40000 rw-p 00000000 00:00 0
"""


def test_other_process_has_the_file_elsewhere():
    theirs = OURS.replace("10000-20000", "71000-81000").replace("20000-30000", "81000-91000")
    assert sampler.moved_by(OURS, theirs, 0x20008) == 0x61000


def test_process_that_has_not_begun_is_looked_at_later():
    with pytest.raises(OSError) as caught:
        sampler.moved_by(OURS, "30000-40000 rw-p 00000000 00:00 0\n", 0x20008)
    assert caught.value.errno == errno.EAGAIN


def test_what_was_counted_is_the_difference():
    before = {"exits": {"mmio": 5, "sbi": 7}, "accesses": {"uart": 1}}
    after = {"exits": {"mmio": 9, "sbi": 7, "csr": 1}, "accesses": {"uart": 1}, "unclaimed": 0}
    assert profile.counted(before, after) == {"exits": {"mmio": 4, "csr": 1}, "accesses": {}}
    assert profile.counted({}, after)["exits"] == after["exits"]


def test_profile_shows_shares_by_function_of_what_is_not_the_guests():
    threads = Samples(
        {("guest", LOOP): 60, (PYTHON, "bus.write"): 30, (GIL_WAIT, "bus.write"): 4, (CALL, "io"): 8}
    )
    threads[PYTHON, LOOP] = 6
    found = profile.described(Sampled(100, 2.0, 0.5, threads))
    found |= {"exits": {"sbi": 1, "mmio": 20}, "accesses": {}}
    lines = report.profiles({"profile": {"load": found}}).splitlines()
    assert lines[:3] == [
        "load: 2.0 s, 100 looks; the sampler took 25% of a CPU besides",
        "  exits: mmio 20, sbi 1",
        "  accesses: none",
    ]
    assert [line.split() for line in lines[4:]] == [
        ["all", "threads", "36.0", "60.0", "8.0", "4.0", "0.0"],
        ["bus.write", "30.0", "0.0", "0.0", "4.0", "0.0"],
        ["io", "0.0", "0.0", "8.0", "0.0", "0.0"],
        [LOOP, "6.0", "60.0", "0.0", "0.0", "0.0"],
    ]


def test_nothing_is_shown_without_a_profile():
    assert report.profiles({}) == ""
    assert report.table([]) == ""


@pytest.mark.skipif(sys.version_info[:2] != (3, 13), reason="it knows the parts of CPython 3.13")
def test_function_of_another_process_is_seen():
    program = "def answer(): print(flush=True); input()\nanswer()"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seen = Program(process.pid)
        with pytest.raises(BlockingIOError):
            seen.look()  # it finds the threads
        assert [function for _, function in seen.look()] == ["<string>.answer"]
        process.kill()
