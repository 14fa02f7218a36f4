# SPDX-License-Identifier: Apache-2.0
"""``pyvmm run`` and those who control its guest, each a process of its own."""

import json
import os
import sys

import pytest
from fakes.controlled import Client, eventually, modes

from pyvmm.control import runfolder


@pytest.fixture
def ask(command):
    """Runs another pyvmm command to its end."""
    return lambda *words: command(sys.executable, "-m", "pyvmm", *words).end()


def reachable(name):
    """Wait until the guest can be reached; its folder."""
    eventually(lambda: [guest for guest in runfolder.running() if guest.name == name])
    found = runfolder.find(name)
    eventually(lambda: os.path.exists(found.path("control.sock")))
    return found


def test_guest_is_listed_by_its_name_and_leaves_nothing(pyvmm, ask, run_folder, image):
    it = pyvmm("idle", "--name=box")
    found = reachable("box")
    assert found.pid == it.process.pid
    assert modes(found.folder) == {".": 0o700, "lock": 0o600, "control.sock": 0o600, "console.sock": 0o600}
    code, out, _ = ask("ps", "--json", "--host=local")
    (row,) = json.loads(out)
    assert (code, row["name"], row["state"], row["program"]) == (0, "box", "running", image)
    code, _, err = ask("kill", "box", "--host=local")
    assert code == 0, err
    code, _, err = it.end()
    assert code == 137
    assert err.endswith("pyvmm: ended by pyvmm kill\n")
    assert os.listdir(run_folder) == [".lock"]


def test_guests_without_a_name_are_numbered(pyvmm):
    first, second = pyvmm("idle"), pyvmm("idle")
    assert {reachable("vm1").pid, reachable("vm2").pid} == {first.process.pid, second.process.pid}


def test_name_that_is_taken_is_refused_before_anything_starts(pyvmm, tmp_path):
    it = pyvmm("idle", "--name=box")
    reachable("box")
    code, out, err = pyvmm("hello", "--name=box", f"--log={tmp_path / 'log'}").end()
    assert (code, out) == (125, b"")
    assert err == (
        f"pyvmm: A guest named box is running (process {it.process.pid}); choose another --name, or end it "
        "with: pyvmm stop box\n"
    )
    assert not (tmp_path / "log").exists()


def test_name_that_is_none_is_refused_before_anything_starts(pyvmm):
    code, _, err = pyvmm("hello", "--name=a/b").end()
    assert code == 125
    assert err.startswith("pyvmm: A guest cannot be called 'a/b': ")


def test_guest_that_was_killed_leaves_its_name_to_the_next(pyvmm):
    it = pyvmm("idle", "--name=box")
    reachable("box")
    it.process.kill()
    it.process.wait()
    assert pyvmm("hello", "--name=box").end()[:2] == (0, b"hello\n")


def test_console_can_be_watched_and_typed_at_beside_the_terminal(pyvmm):
    it = pyvmm("echo", "--name=box")
    client = Client(reachable("box").path("console.sock"))
    assert client.read_until(b"ready\n") == b""
    client.send(b"hello q")
    assert client.read_until(b"hello ") == b""
    assert it.end()[0] == 0
    client.close()


def test_output_that_nobody_takes_does_not_keep_others_from_the_guest(pyvmm, ask):
    it = pyvmm("flood", "--name=box", env={"PAUSE_LIMIT": "0.1"})
    reachable("box")
    assert ask("pause", "box", "--host=local")[0] in (0, 125)  # its vCPU may wait for the reader
    code, _, err = ask("kill", "box", "--host=local")
    assert code == 0, err
    it.process.wait(60)
    assert it.process.returncode == 137


def test_listeners_hear_how_the_guest_ended(pyvmm):
    it = pyvmm("echo", "--name=box")
    client = Client(reachable("box").path("control.sock"))
    client.line()
    client.ask("events")
    client.ask("send", text="q")
    event = client.line()
    assert (event["event"], event["reason"], event["exit_code"]) == ("ended", "poweroff", 0)
    assert client.rest() == b""
    with pytest.raises(Exception, match="No guest named box is running"):
        runfolder.find("box")
    assert it.end()[0] == 0
    client.close()
