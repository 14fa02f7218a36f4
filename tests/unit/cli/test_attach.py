# SPDX-License-Identifier: Apache-2.0
"""``pyvmm attach`` on a terminal, to a guest that is a fake in this process."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios

import pytest
from fakes.controlled import FakeMachine, eventually
from fakes.threads import PATIENCE, read

from pyvmm import control, terminal
from pyvmm.outcome import PANIC, POWEROFF, Outcome


@pytest.fixture
def machine():
    machine = FakeMachine()
    yield machine
    machine.close()


@pytest.fixture
def server(machine, run_folder):
    with control.serve(machine, "guest") as server:
        yield server


class Attached:
    """``pyvmm attach`` on a terminal of its own; ``output`` is what that showed."""

    def __init__(self, command):
        self.master, self.slave = pty.openpty()
        self.resize(30, 100)
        self.before = termios.tcgetattr(self.slave)
        self.output = b""
        words = [sys.executable, "-m", "pyvmm", "attach", "--host=local", "guest"]
        self.it = command(*words, stdin=self.slave, stdout=self.slave)

    def wait_for(self, text):
        while text not in self.output:
            self.output += read(self.master, 1 << 16)

    def type(self, keys):
        os.write(self.master, keys)

    def resize(self, rows, columns):
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def end(self):
        """(exit code, what it said); the terminal is as it was before."""
        code, _, err = self.it.end()
        assert termios.tcgetattr(self.slave) == self.before
        return code, err.replace("\r", "")

    def close(self):
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def attach(command, server, machine):
    made = []

    def start():
        made.append(Attached(command))
        eventually(lambda: ("resize", 100, 30) in machine.calls)
        return made[-1]

    yield start
    for it in made:
        it.close()


def test_console_is_on_the_terminal_from_what_was_printed_last(attach, machine):
    machine.prints(b"Linux version 7\r\nlogin: ")
    it = attach()
    it.wait_for(b"Linux version 7\r\nlogin: ")
    assert not termios.tcgetattr(it.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
    it.type(b"root\x03\r")
    eventually(lambda: b"".join(machine.typed) == b"root\x03\r")
    machine.prints(b"# ")
    it.wait_for(b"# ")


def test_detach_key_leaves_the_guest_running(attach, machine):
    it = attach()
    it.type(b"ls\r\x01d")
    code, said = it.end()
    assert code == 0
    assert said.splitlines() == [
        "pyvmm: attached to guest (Ctrl-A d to detach, Ctrl-A ? for help)",
        "pyvmm: detached from guest, which goes on",
    ]
    eventually(lambda: b"".join(machine.typed) == b"ls\r")
    assert machine.ended is None


def test_help_key_lists_the_keys_and_prefix_can_be_typed(attach, machine):
    it = attach()
    it.type(b"\x01?\x01a\x01\x01\x01d")
    assert terminal.ATTACH_HELP_TEXT in it.end()[1]
    eventually(lambda: b"".join(machine.typed) == b"\x01\x01")


def test_size_of_the_terminal_is_followed(attach, machine):
    it = attach()
    it.resize(50, 132)
    it.it.send(signal.SIGWINCH)
    eventually(lambda: ("resize", 132, 50) in machine.calls)
    it.type(b"\x01d")
    it.end()


def test_end_of_the_guest_is_said_and_its_code_passed_on(attach, machine, server):
    it = attach()
    machine.prints(b"Kernel panic\r\n")
    machine.end(Outcome(PANIC, "the guest panicked: x"))
    server.close()
    code, said = it.end()
    assert code == 255
    assert said.endswith("pyvmm: the guest panicked: x\n")
    it.wait_for(b"Kernel panic\r\n")


def test_quit_key_ends_the_guest(attach, machine):
    it = attach()
    it.type(b"\x01x")
    eventually(lambda: machine.ended is not None)
    it.type(b"\x01d")
    it.end()


def test_detach_key_works_though_the_guest_reads_nothing(attach, machine):
    machine.reads_input = False
    it = attach()
    for _ in range(100):
        it.type(b"x" * 4000)
        read_all(it)
    it.type(b"\x01d")
    assert it.end()[0] == 0


def read_all(it):
    """Give the program on the terminal time to read: a terminal holds no more than 4 KiB."""
    count = bytearray(4)

    def empty():
        fcntl.ioctl(it.slave, termios.FIONREAD, count)
        return not any(count)

    eventually(empty)


def test_pause_of_the_guest_is_shown(attach, machine):
    it = attach()
    machine.pause()
    machine.resume()
    said = b""
    while b"pyvmm: the guest is paused\npyvmm: the guest goes on\n" not in said:
        said += read(it.it.process.stderr.fileno(), 1000)
    it.type(b"\x01d")
    assert it.end()[0] == 0


def test_terminal_is_restored_when_attach_is_terminated(attach):
    it = attach()
    it.wait_for(b"")
    it.it.send(signal.SIGKILL)
    it.it.process.wait(PATIENCE)
    eventually(lambda: termios.tcgetattr(it.slave) == it.before)


# Without a terminal


@pytest.fixture
def piped(command, server):
    return lambda **pipes: command(sys.executable, "-m", "pyvmm", "attach", "--host=local", **pipes)


def test_pipes_are_passed_on_as_they_are(piped, machine, server):
    it = piped(stdin=subprocess.PIPE)
    it.process.stdin.write(b"\x01d" + b"y" * 300_000)
    it.process.stdin.close()
    it.process.stdin = None
    eventually(lambda: sum(map(len, machine.typed)) == 300_002)
    machine.prints(b"out\n")
    it.wait_for(b"out\n")
    machine.end(Outcome(POWEROFF, "the guest powered off"))
    server.close()
    assert it.end() == (0, b"", "pyvmm: the guest powered off\n")


def test_reader_that_goes_away_ends_it_with_code_141(piped, machine):
    it = piped()
    machine.prints(b"out\n")
    it.wait_for(b"out\n")
    it.process.stdout.close()
    it.process.stdout = None
    machine.prints(b"more\n")
    assert it.end()[0] == 141


def test_pyvmm_that_is_killed_is_told_from_a_guest_that_ended(piped, server, machine):
    it = piped()
    machine.prints(b"out\n")
    it.wait_for(b"out\n")
    server.close()
    assert it.end()[::2] == (125, "pyvmm: the guest's pyvmm has gone without a word: it was killed\n")
