# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin with a guest in a real lab host: how it looks from here, and what is left of it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab

PATIENCE = 60
TEST = """
def test_it(vm_booted, console, guest):
    console.expect("Linux version")
    assert guest.check("uname -m").stdout == "riscv64\\n"
    print("booted", vm_booted.name, vm_booted.frame.sockets, flush=True)
    vm_booted.wait(timeout=60)
"""


@pytest.fixture
def booted(lab, pytester):
    """A pytest whose guest has booted: its process, the guest's name, the folder of its sockets."""
    pytester.makepyfile(TEST)
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-s", "-q", "-p", "no:cacheprovider", "--vmm-host=lab"],
        cwd=pytester.path,
        stdout=subprocess.PIPE,
        text=True,
    )
    words: list[str] = []
    output = []
    for line in process.stdout:
        output.append(line)
        if "booted" in line:
            words = line.partition("booted")[2].split()
            break
    assert words, "".join(output)
    yield process, words[0], Path(words[1])
    process.kill()
    process.communicate()


def in_lab(lab, *argv):
    with lab.popen(list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        return process.stdout.read()


def wait_for(condition):
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit, "it did not happen"


def test_nothing_is_left_of_a_guest_whose_pytest_was_killed(lab, booted):
    process, name, sockets = booted
    assert name in in_lab(lab, "ps", "-o", "args")
    assert sorted(path.name for path in (sockets / name).glob("*.sock")) == ["agent.sock", "control.sock"]
    process.kill()
    wait_for(lambda: name not in in_lab(lab, "ps", "-o", "args"))
    wait_for(lambda: not sockets.exists())
