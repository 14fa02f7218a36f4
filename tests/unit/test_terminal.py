# SPDX-License-Identifier: Apache-2.0
import os
import pty
import signal
import termios

import pytest

from pyvmm.terminal import BREAK, HELP, QUIT, TRACE, EscapeKeys, RawTerminal


@pytest.mark.parametrize(
    ("typed", "guest", "commands"),
    [
        (b"ls\r", b"ls\r", []),
        (b"\x01x", b"", [QUIT]),
        (b"a\x01?b\x01t\x01b", b"ab", [HELP, TRACE, BREAK]),
        (b"\x01a\x01\x01", b"\x01\x01", []),
        (b"\x01z", b"\x01z", []),
    ],
)
def test_escape_keys_split_commands_from_input(typed, guest, commands):
    assert EscapeKeys().feed(typed) == (guest, commands)


@pytest.mark.parametrize("cut", range(4))
def test_escape_keys_do_not_care_how_the_input_is_cut(cut):
    keys = EscapeKeys()
    first, second = keys.feed(b"a\x01xb"[:cut]), keys.feed(b"a\x01xb"[cut:])
    assert first[0] + second[0] == b"ab"
    assert first[1] + second[1] == [QUIT]


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
    with RawTerminal(terminal):
        assert is_raw(terminal)
    assert termios.tcgetattr(terminal) == before


def test_raw_terminal_is_restored_after_an_exception(terminal):
    before = termios.tcgetattr(terminal)
    with pytest.raises(ZeroDivisionError), RawTerminal(terminal):
        raise ZeroDivisionError
    assert termios.tcgetattr(terminal) == before


def test_raw_terminal_is_restored_when_its_process_is_killed(terminal):
    before = termios.tcgetattr(terminal)
    ready, ready_writer = os.pipe()
    guarded, guarded_writer = os.pipe()  # the guardian inherits the writer: its end is the guardian's end
    child = os.fork()
    if child == 0:
        os.close(guarded)
        with RawTerminal(terminal):
            os.write(ready_writer, b"y" if is_raw(terminal) else b"n")
            signal.pause()
    os.close(guarded_writer)
    assert os.read(ready, 1) == b"y"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert os.read(guarded, 1) == b""
    assert termios.tcgetattr(terminal) == before
    for fd in (ready, ready_writer, guarded):
        os.close(fd)
