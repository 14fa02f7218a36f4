# SPDX-License-Identifier: Apache-2.0
"""virtio-fs: the device, and virtiofsd's life, with a program that only pretends to be virtiofsd."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from fakes.vhostuser import wait
from fakes.virtio import RAM, Rig, make_services

from pyvmm.devices.settings import parse
from pyvmm.devices.vhost import virtiofsd
from pyvmm.devices.virtio.fs import Fs
from pyvmm.errors import ConfigError
from pyvmm.memory import MEMFD, GuestMemory

ROOT = Path(__file__).resolve().parents[4]
PRETENDER = f"""#!{sys.executable}
import json, os, socket, sys
sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT)!r}]
from fakes.vhostuser import FakeBackend
said = {{"argv": sys.argv[1:], "pgid": os.getpgid(0), "pid": os.getpid(), "fds": os.listdir("/proc/self/fd")}}
with open(os.environ["PRETENDER_LOG"], "w") as log:
    json.dump(said, log)
listener = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
connection, _ = listener.accept()
FakeBackend(own=connection).join()
"""


@pytest.fixture(autouse=True)
def no_leaks():
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before, "descriptors leaked"
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture
def share(tmp_path):
    folder = tmp_path / "share"
    folder.mkdir()
    return folder


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Installs a program as virtiofsd. It is the only one on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PRETENDER_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(virtiofsd, "FOLDERS", ())

    def install(text=PRETENDER):
        path = tmp_path / "bin" / "virtiofsd"
        path.parent.mkdir()
        path.write_text(text)
        path.chmod(0o755)

    return install


def open_device(body):
    return Fs.open(parse(f"--share {body}", body, Fs.SETTINGS, Fs.POSITIONAL), make_services())


def is_inheritable(fd):
    try:
        return os.get_inheritable(fd)
    except OSError:  # the one that listed them
        return False


def said(tmp_path):
    return json.loads((tmp_path / "log").read_text())


@pytest.fixture
def rig(program, share):
    program()
    memory = GuestMemory()
    memory.add(RAM, 4 << 20, backing=MEMFD)
    with Rig(open_device(f"{share},my-tag,rw"), memory=memory) as rig:
        yield rig


def test_virtiofsd_gets_the_folder_a_listener_and_nothing_else_of_ours(rig, share, tmp_path):
    log = said(tmp_path)
    assert log["argv"] == ["--fd", "3", "--shared-dir", str(share), "--xattr", "--log-level", "error"]
    assert log["pgid"] == log["pid"]
    inherited = {fd for fd in os.listdir("/proc/self/fd") if is_inheritable(int(fd))}
    assert set(log["fds"]) <= {"0", "1", "2", "3", "4"} | inherited  # 4 lists the folder


def test_nothing_is_left_in_the_runtime_folder(rig, tmp_path):
    assert sorted(os.listdir(tmp_path)) == ["bin", "log", "share"]


def test_share_is_read_only_unless_asked(program, share, tmp_path):
    program()
    open_device(str(share)).close()
    assert said(tmp_path)["argv"][-1] == "--readonly"


def test_configuration_space_tells_tag_and_queues(rig):
    tag = bytes(rig.device.read(at, 1) for at in range(36))
    assert tag == b"my-tag".ljust(36, b"\0")
    assert rig.device.read(36, 4) == 1
    rig.reset()
    assert rig.device.read(0, 1) == ord("m")


def test_queues_are_worked_by_virtiofsd(rig):
    rig.start()
    token = rig.drivers[1].add_chain([b"fuse"], [4])
    os.eventfd_write(rig.doorbells[1].fd, 1)
    wait(rig, lambda: rig.interrupts.queues)
    assert [(done.token, done.data) for done in rig.drivers[1].collect()] == [(token, b"FUSE")]


def test_virtiofsd_ends_with_the_device(program, share, tmp_path):
    program()
    device = open_device(str(share))
    device.close()
    device.close()
    with pytest.raises(ProcessLookupError):
        os.kill(said(tmp_path)["pid"], 0)


def test_virtiofsd_that_dies_leaves_a_device_that_needs_a_reset(rig, tmp_path):
    rig.start()
    process = said(tmp_path)["pid"]
    os.kill(process, signal.SIGKILL)
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    rig.loop.run()
    assert rig.broken == "virtiofsd has ended."


def test_virtiofsd_that_does_not_end_by_itself_is_killed(program, share, monkeypatch):
    program(PRETENDER + "import time; time.sleep(1000)\n")
    monkeypatch.setattr(virtiofsd, "_PATIENCE", 50)
    open_device(str(share)).close()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("", r"--share  needs dir="),
        ("{}/none", r"/none does not exist; give the folder to share"),
        ("{}," + "t" * 37, r"tag takes a name of at most 36 bytes, not"),
        ("{}", r"needs the program virtiofsd, which is not installed; on Debian: apt install virtiofsd"),
    ],
)
def test_what_a_user_gets_wrong_is_said_in_a_sentence(program, share, body, sentence):
    with pytest.raises(ConfigError, match=sentence):
        open_device(body.format(share))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("#!/bin/sh\nexit 1\n", r"virtiofsd did not start. virtiofsd has ended. What it printed says more."),
        ("#!/none/such\n", r"virtiofsd cannot be run: No such file or directory"),
        ("#!/bin/sh\nexec /bin/sleep 1000\n", r"virtiofsd does not answer"),
    ],
)
def test_virtiofsd_that_does_not_start_is_said_in_a_sentence(program, share, monkeypatch, text, sentence):
    monkeypatch.setattr(virtiofsd, "_PATIENCE", 50)
    monkeypatch.setattr("pyvmm.devices.vhost.user.PATIENCE", 0.3)
    program(text)
    with pytest.raises(ConfigError, match=sentence):
        open_device(str(share))


def test_socket_folder_that_is_missing_is_said_in_a_sentence(program, share, monkeypatch):
    program()
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/none/such")
    with pytest.raises(ConfigError, match=r"no socket can be made in /none/such: No such file"):
        open_device(str(share))
