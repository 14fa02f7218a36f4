# SPDX-License-Identifier: Apache-2.0
"""The agent itself, in C, compiled for this machine: its port is a socket, its guest this machine."""

import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import termios
from pathlib import Path

import pytest
from fakes.agent import EXIT, HELLO, INPUT, MAGIC, POWEROFF, SPEC, START, frame
from fakes.threads import PATIENCE, Background, in_time

from pyvmm.guest.client import Guest
from pyvmm.guest.process import STDOUT
from pyvmm.guest.protocol import EXIT_PAYLOAD, EXITED, FAILED, RESOURCES, GuestError, GuestTimeout, Parser

TESTS = Path(__file__).resolve().parents[2]
SOURCES = ["base.c", "command.c", "out.c", "serve.c", "session.c"]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The agent, without what is only for guests."""
    pytest.importorskip("ziglang", reason="the agent is compiled by zig")
    if platform.machine() not in ("x86_64", "riscv64"):
        pytest.skip(f"the agent is not written for {platform.machine()}")
    from pyvmm.lab.programs import freestanding

    target = tmp_path_factory.mktemp("agent") / "agent"
    folder = TESTS.parent / "pyvmm/guest/agent"
    freestanding(
        [*(folder / name for name in SOURCES), TESTS / "fakes/agent_place.c"], target, platform.machine()
    )
    return target


@pytest.fixture
def agent(program, request):
    """A running agent: (process, our end of its port). A parameter is what its kernel lacks."""
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    process = subprocess.Popen([program, *getattr(request, "param", ())], stdin=theirs)
    theirs.close()
    yield process, ours
    ours.close()
    process.kill()
    process.wait()


@pytest.fixture
def guest(agent):
    with Guest(agent[1]) as it:
        it.wait_ready(PATIENCE)
        yield it


def processes(mark):
    """Command lines of this machine that hold ``mark``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if mark in words:
                found.append(words)
    return found


def gone(mark):
    while processes(mark):
        os.sched_yield()


def sleeping(pid):
    """Wait until a process waits for something; fails when it has ended."""
    while (state := Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) != "S":
        assert state != "Z"
        os.sched_yield()


def emptied(pipe):
    """Wait until nothing is in a pipe."""
    held = bytearray(4)
    while fcntl.ioctl(pipe, termios.FIONREAD, held) or any(held):
        os.sched_yield()


HELLO_FRAME = frame(HELLO, payload=MAGIC + bytes(16) + struct.pack("<I", 1))
WINDOWS = bytes(8) + struct.pack("<II", 1 << 20, 1 << 20)  # START, kind 0


def exits(ours):
    """Say HELLO; returns the EXIT frames that come: session, and how, stage and value."""
    ours.sendall(bytes(16392) + HELLO_FRAME)
    parser = Parser(bytes(16))

    def come():
        while True:
            for kind, _, session, payload in parser.feed(ours.recv(1 << 16)):
                if kind == EXIT:
                    yield session, EXIT_PAYLOAD.unpack(payload)

    return come()


# Commands


def test_outputs_and_status_come_back(guest):
    done = guest.run("echo out; echo err >&2; exit 3")
    assert (done.status, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


def test_signal_is_128_and_its_number(guest):
    assert guest.run("kill -9 $$").status == 137


@pytest.mark.parametrize(
    ("command", "status"), [(["nosuch"], 127), (["/nosuch/x"], 127), (["/etc/passwd"], 126), (["/"], 126)]
)
def test_what_cannot_be_run_has_the_status_of_a_shell(guest, command, status):
    done = guest.run(command)
    assert done.status == status
    assert done.failure.startswith(command[0])


def test_program_is_looked_for_in_the_path_it_is_given(guest, tmp_path):
    (tmp_path / "tool").write_text("echo a script without a first line")
    (tmp_path / "tool").chmod(0o755)
    assert guest.run(["tool"]).status == 127
    done = guest.run(["tool"], env={"PATH": f"/nosuch::{tmp_path}:/bin"})
    assert done.stdout == b"a script without a first line\n"


def test_environment_and_folder_are_those_that_were_given(guest, tmp_path):
    done = guest.run("pwd; echo $HOME $TERM $A; env | wc -l", env={"A": "x"}, cwd=str(tmp_path))
    assert done.stdout.decode().splitlines()[:2] == [str(tmp_path), "/root linux x"]
    done = guest.run(["true"], cwd="/nosuch")
    assert (done.status, "working directory" in done.failure) == (126, True)


def test_command_starts_with_plain_signals_and_three_descriptors(guest):
    done = guest.run("ls /proc/self/fd; grep -E 'Sig(Blk|Ign)' /proc/self/status")
    # The fourth is the folder that ls reads.
    *descriptors, _, blocked, _, ignored = done.stdout.decode().split()
    assert descriptors == ["0", "1", "2", "3"]
    # 32 and 33 are libc's own: whoever runs this test may have handed them down, and nobody can set them.
    assert (int(blocked, 16), int(ignored, 16) & ~(3 << 31)) == (0, 0)


def test_megabytes_go_in_and_come_out_as_they_are(guest):
    data = os.urandom(3 << 20)
    done = in_time(lambda: guest.run(["cat"], input=data))
    assert done.stdout == data


def test_input_that_nobody_reads_holds_up_nothing(guest):
    assert in_time(lambda: guest.run("exec <&-; echo closed", input=bytes(1 << 20))).stdout == b"closed\n"
    assert in_time(lambda: guest.run("true", input=bytes(1 << 20))).status == 0


def test_output_that_nobody_reads_holds_up_no_other_command(guest):
    flood = guest.start("yes")
    for _ in range(20):
        assert in_time(lambda: guest.run("echo x")).stdout == b"x\n"
    flood.abandon()
    assert flood.wait(PATIENCE) == 137


def test_all_that_was_written_before_the_end_arrives(guest):
    for _ in range(20):
        assert len(in_time(lambda: guest.run("head -c 60000 /dev/zero")).stdout) == 60000


def test_what_stays_in_the_background_does_not_keep_the_command(guest):
    done = in_time(lambda: guest.run("sleep 1000 & echo $!"))
    os.kill(int(done.stdout), signal.SIGKILL)


def test_signal_reaches_what_the_command_started(guest):
    process = guest.start("sh -c 'echo up; sleep 1000'; echo survived")
    assert process.read(STDOUT) == b"up\n"
    process.signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_sixteen_commands_run_at_once_and_the_next_one_after_them(guest):
    running = [guest.start(["cat"]) for _ in range(16)]
    with pytest.raises(GuestError, match="runs 16 commands at a time"):
        guest.start("true")
    for number, process in enumerate(running):
        process.write(b"%d" % number)
    for number, process in enumerate(running):
        assert process.read(STDOUT) == b"%d" % number
        process.close_input()
        assert process.wait(PATIENCE) == 0
    assert guest.run("true").status == 0


def test_long_command_arrives_whole(guest):
    words = [f"{number:05}" for number in range(9000)]
    assert guest.run(["echo", *words[:8000]]).stdout.split() == [word.encode() for word in words[:8000]]
    done = guest.run(["echo", *words])
    assert (done.status, "Argument list too long" in done.failure) == (126, True)


def test_command_longer_than_the_agent_takes_is_not_run(agent):
    found = exits(agent[1])
    word = b"a" + b"x" * 8000 + b"\0"
    agent[1].sendall(frame(SPEC, 1, b"atrue\0") + frame(SPEC, 1, word) * 9 + frame(START, 1, WINDOWS))
    assert next(found) == (1, (FAILED, RESOURCES, errno.E2BIG))
    agent[1].sendall(frame(SPEC, 1, b"atrue\0") + frame(START, 1, WINDOWS))
    assert next(found) == (1, (EXITED, 0, 0))


def test_every_command_that_finds_no_room_is_answered(agent):
    """Also when what answers them fills everything between the agent and a host that does not read yet."""
    ours = agent[1]
    found = exits(ours)
    for number in range(1, 17):
        ours.sendall(frame(SPEC, number, b"acat\0") + frame(START, number, WINDOWS))
    more = range(17, 40_000)
    sending = Background(lambda: ours.sendall(b"".join(frame(START, number, WINDOWS) for number in more)))
    while sending.thread.is_alive() and select.select([], [ours], [], 0)[1]:
        os.sched_yield()
    for number in more:
        assert next(found) == (number, (FAILED, RESOURCES, errno.EAGAIN))
    sending.result()


@pytest.mark.parametrize("agent", [["signalfd"], ["epoll"], ["signalfd", "epoll"]], indirect=True)
def test_agent_needs_neither_signalfd_nor_epoll(guest):
    assert guest.run("echo hi; exit 3").stdout == b"hi\n"
    process = guest.start(["cat"])
    process.close_input()
    assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("lacks", [[], ["epoll"]])
def test_host_that_comes_late_is_noticed(program, tmp_path, lacks):
    os.mkfifo(tmp_path / "port")
    port = os.open(tmp_path / "port", os.O_RDONLY | os.O_NONBLOCK)
    process = subprocess.Popen([program, *lacks], stdin=port)
    os.close(port)
    try:
        in_time(lambda: sleeping(process.pid))
        (tmp_path / "port").write_bytes(bytes(16392) + HELLO_FRAME + frame(POWEROFF))
        assert process.wait(PATIENCE) == 42
    finally:
        process.kill()
        process.wait()


def test_host_whose_coming_the_kernel_tells_after_its_data_is_heard(program, tmp_path):
    os.mkfifo(tmp_path / "port")
    port = os.open(tmp_path / "port", os.O_RDONLY | os.O_NONBLOCK)
    process = subprocess.Popen([program], stdin=port)
    data = bytes(16392) + HELLO_FRAME + frame(POWEROFF)
    try:
        for part in (data[:16400], data[16400:]):  # each is all there and its writer gone before it is read
            in_time(lambda: sleeping(process.pid))
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            (tmp_path / "port").write_bytes(part)
            process.send_signal(signal.SIGCONT)
            in_time(lambda: emptied(port))
        assert process.wait(PATIENCE) == 42
    finally:
        os.close(port)
        process.kill()
        process.wait()


def test_time_limit_leaves_nothing_behind(guest):
    mark = b"9876.%d" % os.getpid()
    with pytest.raises(GuestTimeout):
        guest.run(f"sleep {mark.decode()}; true", timeout=0.1)
    in_time(lambda: gone(mark))


# Files


def test_file_goes_there_and_back(guest, tmp_path):
    data = os.urandom(300_000)
    guest.put(data, f"{tmp_path}/file", mode=0o640)
    assert (tmp_path / "file").read_bytes() == data
    assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o640
    assert guest.get(f"{tmp_path}/file") == data
    guest.get(f"{tmp_path}/file", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


def test_shorter_file_replaces_a_longer_one(guest, tmp_path):
    guest.put(b"longer", f"{tmp_path}/file")
    guest.put(b"x", f"{tmp_path}/file")
    assert (tmp_path / "file").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("path", "reason"), [("/nosuch/x", "No such file or directory"), ("/proc", "Is a directory")]
)
def test_file_that_cannot_be_copied_is_an_error_with_the_reason(guest, path, reason):
    for copy in (lambda: guest.put(b"x" * 1_000_000, path), lambda: guest.get(path)):
        with pytest.raises(GuestError, match=rf"{path}: {reason} \(in the guest\)\."):
            in_time(copy)


@pytest.mark.parametrize("agent", [["close"]], indirect=True)
def test_file_whose_writing_fails_only_when_it_is_closed_is_an_error(guest, tmp_path):
    with pytest.raises(GuestError, match=r"file: No space left on device \(in the guest\)\."):
        in_time(lambda: guest.put(b"x", f"{tmp_path}/file"))


# The connection


def test_power_off_ends_the_agent(agent, guest):
    guest.power_off()
    assert agent[0].wait(PATIENCE) == 42


@pytest.mark.parametrize("cut", [0, 1, 5, 8, 9, 5000, 16391])
def test_next_client_is_served_wherever_the_last_one_stopped(agent, cut):
    ours = agent[1]
    start = frame(SPEC, 1, b"acat\0") + frame(START, 1, WINDOWS)
    ours.sendall(bytes(16392) + HELLO_FRAME + start + frame(INPUT, 1, b"x" * 16384)[:cut])
    with Guest(ours.dup()) as guest:
        guest.wait_ready(PATIENCE)
        assert guest.run("echo hi").stdout == b"hi\n"


def test_next_client_finds_nothing_of_the_last_one(agent):
    mark = b"8765.%d" % os.getpid()
    with Guest(agent[1].dup()) as guest:
        process = guest.start(f"echo up; sleep {mark.decode()}; true")
        assert process.read(STDOUT) == b"up\n"
        assert processes(mark)
    with Guest(agent[1].dup()) as guest:
        guest.wait_ready(PATIENCE)
        in_time(lambda: gone(mark))
        assert guest.run("echo hi").stdout == b"hi\n"


def test_garbage_is_skipped_up_to_the_next_hello(agent):
    ours = agent[1]
    ours.sendall(b"\xff" * 100_000)
    with Guest(ours.dup()) as guest:
        guest.wait_ready(PATIENCE)
        assert guest.run("echo hi").stdout == b"hi\n"
