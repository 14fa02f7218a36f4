# SPDX-License-Identifier: Apache-2.0
"""The shell text of a lab command, run by the machine's shell, and the terminal that is always restored."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios

import pytest

from pyvmm.errors import HostError
from pyvmm.lab import ssh


@pytest.fixture
def run(tmp_path):
    """Run an argument vector as the lab would, with an empty session prelude."""
    (tmp_path / "session").touch()

    def go(argv, cwd="/", environment=None):
        text = ssh.remote_command(argv, cwd=str(cwd), environment=environment or {})
        text = text.replace("/lib/lab/session", str(tmp_path / "session"))
        return subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=False)

    return go


@pytest.mark.parametrize("word", ["a b", "$HOME", "it's", '"', "*", "a\nb", "", "-n;ls"])
def test_words_arrive_as_they_were_given(run, word):
    done = run([sys.executable, "-c", "import sys; print(repr(sys.argv[1]))", word])
    assert done.stdout == repr(word) + "\n"


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_exit_status_comes_through(run, status):
    assert run(["sh", "-c", f"exit {status}"]).returncode == status


@pytest.mark.parametrize("number", [1, 2, 9, 11, 15])
def test_signal_gives_128_plus_its_number_and_no_message(run, number):
    done = run(["sh", "-c", f"kill -{number} $$"])
    assert (done.returncode, done.stderr) == (128 + number, "")


def test_unknown_command_gives_127_and_names_it(run):
    done = run(["no-such-command-here"])
    assert done.returncode == 127
    assert "no-such-command-here" in done.stderr


def test_standard_error_is_kept_apart(run):
    done = run(["sh", "-c", "echo out; echo err >&2"])
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_command_runs_in_the_directory_and_with_the_environment(run, tmp_path):
    where = tmp_path / "a 'b"
    where.mkdir()
    done = run(["sh", "-c", 'pwd; echo "$X"'], cwd=where, environment={"X": "1 $2 '3"})
    assert done.stdout == f"{where}\n1 $2 '3\n"


def test_missing_directory_gives_125_and_a_sentence(run, tmp_path):
    done = run(["true"], cwd=tmp_path / "gone")
    assert done.returncode == 125
    assert done.stderr == f"pyvmm: the directory {tmp_path / 'gone'} is not in the lab\n"


def test_terminal_is_restored_after_raw_mode():
    pid, master = pty.fork()
    if pid == 0:
        before = termios.tcgetattr(0)
        with ssh.SavedTerminal():
            raw = termios.tcgetattr(0)
            raw[3] &= ~(termios.ECHO | termios.ICANON)
            termios.tcsetattr(0, termios.TCSANOW, raw)
        os._exit(0 if termios.tcgetattr(0)[3] == before[3] and before[3] & termios.ECHO else 1)
    _, status = os.waitpid(pid, 0)
    os.close(master)
    assert os.waitstatus_to_exitcode(status) == 0


def test_nothing_listens_on_a_socket_that_is_not_there(tmp_path):
    connection = ssh.Connection.__new__(ssh.Connection)
    connection._control = tmp_path / "none"
    assert not connection.alive()


@pytest.fixture
def connection(tmp_path, monkeypatch):
    """A connection whose ssh writes its words to a file, and ends as ``status`` says."""
    script = tmp_path / "ssh"
    script.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >"$0.words"; echo no >&2; exit $(cat "$0.status")\n')
    script.chmod(0o700)
    (tmp_path / "ssh.status").write_text("0")
    monkeypatch.setattr(ssh.tools, "command", lambda name: [str(script)])
    connection = ssh.Connection.__new__(ssh.Connection)
    connection._options = ["-S", "master"]
    return connection


def test_forwarding_asks_the_master_to_listen_for_its_owner_alone(connection, tmp_path):
    connection.forward(tmp_path / "here", "/run/there")
    words = (tmp_path / "ssh.words").read_text().split()
    assert words[:2] == ["-S", "master"]
    assert words[-5:] == ["-O", "forward", "-L", f"{tmp_path}/here:/run/there", "lab"]
    assert "StreamLocalBindMask=0177" in words


def test_master_that_cannot_listen_is_an_error_with_its_reason(connection, tmp_path):
    (tmp_path / "ssh.status").write_text("255")
    with pytest.raises(HostError, match=r"/run/there .*: no\."):
        connection.forward(tmp_path / "here", "/run/there")


def test_cancel_command_names_the_same_ends(connection, tmp_path):
    words = connection.cancel_command(tmp_path / "here", "/run/there")
    assert words[1:] == ["-S", "master", "-O", "cancel", "-L", f"{tmp_path}/here:/run/there", "lab"]
