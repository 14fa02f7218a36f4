# SPDX-License-Identifier: Apache-2.0
import os
import pty
import select
import signal
import termios
from pathlib import Path

import pytest

from pyvmm.terminal import BREAK, HELP, QUIT, TRACE, EscapeKeys, RawTerminal


@pytest.mark.parametrize(
    ("typed", "items"),
    [
        (b"ls\r", [b"ls\r"]),
        (b"\x01x", [QUIT]),
        (b"a\x01?b\x01t\x01bh", [b"a", HELP, b"b", TRACE, BREAK, b"h"]),
        (b"\x01a\x01\x01", [b"\x01\x01"]),
        (b"\x01z", [b"\x01z"]),
    ],
)
def test_escape_keys_split_commands_from_input_in_order(typed, items):
    assert EscapeKeys().feed(typed) == items


@pytest.mark.parametrize("cut", range(4))
def test_escape_keys_do_not_care_how_the_input_is_cut(cut):
    keys = EscapeKeys()
    assert keys.feed(b"a\x01xb"[:cut]) + keys.feed(b"a\x01xb"[cut:]) == [b"a", QUIT, b"b"]


def is_raw(fd):
    return not termios.tcgetattr(fd)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)


@pytest.fixture
def terminal():
    master, slave = pty.openpty()
    yield slave
    os.close(master)
    os.close(slave)


def test_raw_terminal_is_raw_inside_and_as_before_afterwards(terminal):
    before = termios.tcgetattr(terminal)
    raw = RawTerminal(terminal)
    with raw:
        assert is_raw(terminal)
    raw.close()
    assert termios.tcgetattr(terminal) == before


def test_raw_terminal_is_restored_after_an_exception(terminal):
    before = termios.tcgetattr(terminal)
    raw = RawTerminal(terminal)
    with pytest.raises(ZeroDivisionError), raw:
        raise ZeroDivisionError
    raw.close()
    assert termios.tcgetattr(terminal) == before


def test_raw_terminal_is_restored_when_its_process_is_killed(terminal):
    before = termios.tcgetattr(terminal)
    ready, ready_writer = os.pipe()
    child = os.fork()
    if child == 0:
        with RawTerminal(terminal):
            os.write(ready_writer, b"y" if is_raw(terminal) else b"n")
            signal.pause()
    assert os.read(ready, 1) == b"y"
    guardian = int(Path(f"/proc/{child}/task/{child}/children").read_text())
    restored = os.pidfd_open(guardian)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert select.select([restored], [], [], 60)[0], "the guardian outlives the process it guards"
    assert termios.tcgetattr(terminal) == before
    for fd in (ready, ready_writer, restored):
        os.close(fd)
