# SPDX-License-Identifier: Apache-2.0
"""Commands in a real lab host: what goes in, what comes out, and what is left when a client vanishes."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import stat
import subprocess
import sys
import termios
import time
from pathlib import Path

import pexpect
import pytest

from pyvmm.lab import sync
from pyvmm.lab.host import Lab

pytestmark = pytest.mark.lab

CLIENT = [sys.executable, str(Path(__file__).with_name("in_lab.py"))]
PATIENCE = 30
ECHO = """
import os, socket
server = socket.socket(socket.AF_UNIX)
server.bind("/run/echo.sock")
server.listen()
print("listening", flush=True)
client, _ = server.accept()
os.unlink("/run/echo.sock")
while data := client.recv(100):
    client.sendall(data)
"""
TCP_ECHO = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    print("listening", flush=True)
    client, _ = server.accept()
    client.sendall(client.recv(100))
"""


def output(lab: Lab, *argv: str, **how: object) -> str:
    with lab.popen(list(argv), stdout=subprocess.PIPE, text=True, **how) as process:
        assert process.stdout
        return process.stdout.read()


def processes(lab: Lab, mark: str) -> list[str]:
    return [line for line in output(lab, "ps", "-o", "pid,args").splitlines() if mark in line]


def wait_for(condition) -> None:
    """Poll the lab (each look is a session of its own) until the condition holds."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit, "it did not happen"


def ssh_of(client: int) -> int:
    children = Path(f"/proc/{client}/task/{client}/children").read_text().split()
    return int(children[0])


@pytest.mark.parametrize("status", [0, 1, 255])
def test_exit_status_comes_through(lab, status):
    assert lab.run(["sh", "-c", f"exit {status}"], tty=False) == status


def test_death_by_signal_is_128_plus_its_number(lab):
    assert lab.run(["sh", "-c", "kill -11 $$"], tty=False) == 128 + signal.SIGSEGV


def test_standard_error_is_kept_apart(lab):
    process = lab.popen(
        ["sh", "-c", "echo out; echo err >&2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.communicate() == (b"out\n", b"err\n")


def test_pipe_arrives_whole_in_both_directions(lab):
    data = os.urandom(1 << 20)
    process = lab.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    back, _ = process.communicate(data)
    assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()


def test_closed_standard_input_does_not_end_the_command(lab):
    assert lab.run(["sh", "-c", "cat; sleep 3; exit 5"], tty=False, stdin=subprocess.DEVNULL) == 5


def test_same_working_directory_and_files_under_the_same_paths(lab, tmp_path):
    (tmp_path / "to lab").write_text("hello")
    script = 'cat "to lab"; pwd; echo back >from'
    assert output(lab, "sh", "-c", script, cwd=str(tmp_path)) == f"hello{tmp_path}\n"
    assert (tmp_path / "from").read_text() == "back\n"


def test_open_file_shows_what_the_machine_writes_later(lab, tmp_path):
    path = tmp_path / "log"
    path.write_text("one")
    script = f"f = open({str(path)!r}); print(f.read(), flush=True); input(); f.seek(0); print(f.read())"
    with lab.popen(
        ["python3", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "one\n"
        path.write_text("two")
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "two\n"


def test_unclosed_file_of_the_lab_is_readable_on_the_machine(lab, tmp_path):
    path = tmp_path / "log"
    script = f"f = open({str(path)!r}, 'w'); f.write('now'); f.flush(); print(1, flush=True); input()"
    with lab.popen(
        ["python3", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "1\n"
        assert path.read_text() == "now"
        process.stdin.write("\n")


def test_shared_writable_mapping_reaches_the_machine(lab, tmp_path):
    path = tmp_path / "mapped"
    path.write_bytes(bytes(4096))
    script = "import mmap, sys; f = open(sys.argv[1], 'r+b'); "
    script += "m = mmap.mmap(f.fileno(), 0); m[0:2] = b'ok'; m.flush()"
    assert lab.run(["python3", "-c", script, str(path)], tty=False) == 0
    assert path.read_bytes()[:2] == b"ok"


def test_new_top_level_directory_appears_with_the_next_session(lab):
    if not os.access("/", os.W_OK):
        pytest.skip("only root can make a top-level directory")
    new = Path(f"/pyvmm-test-{os.getpid()}")
    new.mkdir()
    try:
        (new / "x").write_text("there")
        assert output(lab, "cat", f"{new}/x") == "there"
    finally:
        (new / "x").unlink()
        new.rmdir()


def test_pyvmm_there_is_the_one_here(lab):
    assert output(lab, "python3", "-c", "import pyvmm.layout; print(pyvmm.layout.__file__)").strip() == str(
        Path(sys.modules["pyvmm"].__file__).parent / "layout.py"
    )


def test_pytest_runs_there_with_the_machines_tests(lab, tmp_path):
    test = "import os\ndef test_kvm(): assert os.path.exists('/dev/kvm')\n"
    (tmp_path / "test_there.py").write_text(test)
    text = output(
        lab, "python3", "-m", "pytest", "-q", "test_there.py", cwd=str(tmp_path), distributions=sync.TEST
    )
    assert "1 passed" in text


def test_sessions_run_side_by_side(lab):
    running = [lab.popen(["sh", "-c", "read x; exit $x"], stdin=subprocess.PIPE) for _ in range(12)]
    for number, process in enumerate(running):
        process.communicate(str(number).encode() + b"\n")
    assert [process.returncode for process in running] == list(range(12))


@pytest.mark.parametrize("victim", ["client", "ssh"])
@pytest.mark.parametrize("stdin", ["open", "ended"])
@pytest.mark.parametrize("script", ["exec sleep {0}", "(setsid sleep {0} &); trap '' HUP TERM; sleep {0}"])
def test_killed_client_leaves_nothing_in_the_lab(lab, victim, stdin, script):
    mark = f"9{time.monotonic_ns() % 10**8}"
    how = subprocess.DEVNULL if stdin == "ended" else subprocess.PIPE
    client = subprocess.Popen([*CLIENT, "sh", "-c", script.format(mark)], stdin=how, stdout=subprocess.PIPE)
    wait_for(lambda: processes(lab, f"sleep {mark}"))
    os.kill(client.pid if victim == "client" else ssh_of(client.pid), signal.SIGKILL)
    wait_for(lambda: not processes(lab, f"sleep {mark}"))
    client.communicate()


def test_killed_client_with_a_terminal_leaves_nothing_in_the_lab(lab):
    mark = f"9{time.monotonic_ns() % 10**8}"
    client = pexpect.spawn(CLIENT[0], [*CLIENT[1:], "sh", "-c", f"trap '' HUP; sleep {mark}"])
    wait_for(lambda: processes(lab, f"sleep {mark}"))
    client.kill(signal.SIGKILL)
    wait_for(lambda: not processes(lab, f"sleep {mark}"))
    client.close()


def test_terminal_has_the_windows_size_and_raw_keys(lab):
    client = pexpect.spawn(
        CLIENT[0], [*CLIENT[1:], "sh", "-c", "stty size; read x; echo got $x"], dimensions=(33, 77)
    )
    client.expect("33 77", timeout=PATIENCE)
    client.sendline("word")
    client.expect("got word", timeout=PATIENCE)
    client.expect(pexpect.EOF)
    client.close()
    assert client.exitstatus == 0


def test_interrupt_key_goes_to_the_command_in_the_lab(lab):
    client = pexpect.spawn(
        CLIENT[0],
        [*CLIENT[1:], "sh", "-c", "trap 'echo caught; exit 9' INT; echo up; while :; do sleep 1; done"],
    )
    client.expect("up", timeout=PATIENCE)
    client.sendcontrol("c")
    client.expect("caught", timeout=PATIENCE)
    client.expect(pexpect.EOF)
    client.close()
    assert client.exitstatus == 9


def test_terminal_is_restored_when_ssh_is_killed(lab):
    client = pexpect.spawn("sh", ["-c", f"{' '.join(CLIENT)} sh -c 'echo up; sleep 100'; echo over; cat"])
    client.expect("up", timeout=PATIENCE)
    shell_child = ssh_of(client.pid)
    os.kill(ssh_of(shell_child), signal.SIGKILL)
    client.expect("over", timeout=PATIENCE)
    flags = termios.tcgetattr(client.child_fd)[3]
    client.close(force=True)
    assert flags & termios.ECHO
    assert flags & termios.ICANON


def test_socket_of_the_lab_is_reachable_here_until_that_is_cancelled(lab, tmp_path):
    here = tmp_path / "echo"
    server = lab.popen(
        ["python3", "-c", ECHO], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, cwd="/"
    )
    with server:
        assert server.stdout.readline() == "listening\n"
        lab.forward(here, "/run/echo.sock")
        assert stat.S_IMODE(here.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(here))
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
    subprocess.run(lab.cancel_command(here, "/run/echo.sock"), check=True, capture_output=True)
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(OSError):
        client.connect(str(here))


def test_port_of_the_lab_is_reachable_here_for_as_long_as_it_is_wanted(lab):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = lab.popen(
        ["python3", "-c", TCP_ECHO, str(port)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/"
    )
    with server:
        assert server.stdout.readline() == b"listening\n"
        here = there = f"127.0.0.1:{port}"
        with (
            lab.forwarding([(here, there)]),
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client,
        ):
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
