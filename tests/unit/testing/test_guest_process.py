# SPDX-License-Identifier: Apache-2.0
"""The end of a guest under test is known, whatever its pyvmm and this host do."""

import contextlib
import resource
import subprocess
import sys

import pytest
from fakes.threads import PATIENCE

from pyvmm.testing.log import ConsoleLog
from pyvmm.testing.process import LOST, GuestProcess


@contextlib.contextmanager
def no_descriptor_left():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Scripts:
    """A place whose guests are Python programs; ``then`` is done once one was started."""

    def __init__(self, then):
        self._then = then

    def popen(self, words, **how):
        process = subprocess.Popen([sys.executable, "-c", *words], **how)
        self._then()
        return process


@pytest.fixture
def play(tmp_path):
    """Runs a program as a guest until its end is known; returns its process and its log."""
    begun = []

    def play(program, then=lambda: None):
        log = ConsoleLog(tmp_path / "console.log")
        guest = GuestProcess(Scripts(then), [program], tmp_path, tmp_path, log, lambda: None)
        begun.append(guest)
        assert log.wait_end(PATIENCE, lambda: False)
        return guest, log

    yield play
    for guest in begun:
        guest.close()


def test_real_time_signal_without_a_name_has_its_number(play):
    guest, _ = play("import os; os.kill(os.getpid(), 40)")
    assert (guest.end.reason, guest.end.message) == (LOST, "its pyvmm was killed by signal 40")


def test_guest_ends_for_a_test_that_has_no_descriptor_left(play):
    with contextlib.ExitStack() as stack:
        guest, log = play("print('hello')", lambda: stack.enter_context(no_descriptor_left()))
    assert (guest.end.exit_code, log.raw) == (0, b"hello\n")


def test_helper_that_outlives_pyvmm_does_not_hold_up_the_end(play):
    helper = "import subprocess; print(subprocess.Popen(['sleep', '1000']).pid, flush=True)"
    guest, log = play(helper)
    subprocess.run(["kill", log.raw.strip()], check=True)
    assert guest.end.exit_code == 0
