# SPDX-License-Identifier: Apache-2.0
"""The client of the guest's agent, with an agent that says what the test wants."""

import io
import struct

import pytest
from fakes.agent import CREDIT, INPUT, SIGNAL, TAKEN, FakeAgent, frame
from fakes.threads import PATIENCE, Background, in_time

from pyvmm.errors import ConfigError
from pyvmm.guest.client import Guest
from pyvmm.guest.process import STDERR, STDOUT, WINDOW
from pyvmm.guest.protocol import GuestError, GuestGone, GuestProtocolError, GuestTimeout


@pytest.fixture
def agent():
    it = FakeAgent()
    yield it
    it.hang_up()


@pytest.fixture
def guest(agent):
    """Not ready before the agent says so."""
    with Guest(agent.client) as it:
        yield it


@pytest.fixture
def ready(agent, guest):
    agent.begin()
    return guest


# The beginning


def test_is_ready_when_the_agent_answers(agent, guest):
    agent.begin()
    guest.wait_ready(30)


def test_waits_only_as_long_as_told(guest):
    with pytest.raises(GuestTimeout, match=r"did not answer within 0\.01 s"):
        guest.wait_ready(0.01)


@pytest.mark.parametrize("asks", ["run", "put", "put a file", "get"])
def test_a_time_limit_counts_from_before_the_agent_answers(guest, tmp_path, asks):
    (tmp_path / "file").touch()
    asked = {
        "run": lambda: guest.run("x", timeout=0.01),
        "put": lambda: guest.put(b"x", "/x", timeout=0.01),
        "put a file": lambda: guest.put(tmp_path / "file", "/x", timeout=0.01),
        "get": lambda: guest.get("/x", timeout=0.01),
    }
    asking = Background(asked[asks])
    with pytest.raises(GuestTimeout, match=r"did not answer within 0\.01 s"):
        asking.result()


def test_what_was_meant_for_an_earlier_client_is_skipped(agent, guest):
    agent.hear_hello()
    agent.send(b"\x12rest of a frame" + frame(20, 7, bytes(8)) + agent.ready_frame()[:20])
    agent.send(agent.ready_frame())
    guest.wait_ready(30)


def test_another_version_is_refused_with_both(agent, guest):
    agent.begin(version=9)
    with pytest.raises(GuestProtocolError, match="version 9 of its protocol, this pyvmm 1"):
        guest.wait_ready(30)


def test_something_else_that_talks_without_end_is_given_up(agent, guest):
    talking = Background(lambda: [agent.send(bytes(1 << 20)) for _ in range(64)])
    with pytest.raises(GuestProtocolError, match="is not pyvmm's agent"):
        guest.wait_ready(30)
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        talking.result()


def test_a_guest_that_hangs_up_is_gone(agent, guest):
    agent.hear_hello()
    agent.hang_up()
    with pytest.raises(GuestGone, match="closed the connection"):
        guest.wait_ready(30)


def test_nobody_at_the_socket_is_the_users_mistake(tmp_path):
    with pytest.raises(ConfigError, match=r"agent can be reached at .*/agent.sock: No such file"):
        Guest.connect(f"{tmp_path}/agent.sock")


# Commands


def test_a_text_is_for_the_shell_and_a_list_is_not(agent, ready):
    for command, words in (("a | b", [b"a/bin/sh", b"a-c", b"aa | b"]), (["a", "| b"], [b"aa", b"a| b"])):
        running = Background(lambda command=command: ready.run(command))
        session, spec, _ = agent.expect_start()
        agent.exit(session)
        assert running.result().status == 0
        assert [word for word in spec if word.startswith(b"a")] == words


def test_environment_and_folder_come_along(agent, ready):
    running = Background(lambda: ready.run(["x"], env={"HOME": "/h", "A": "b=c"}, cwd="/tmp"))
    session, spec, _ = agent.expect_start()
    agent.exit(session)
    running.result()
    path = b"ePATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert spec[1:] == [path, b"eHOME=/h", b"eTERM=linux", b"eA=b=c", b"d/tmp"]


def test_outputs_are_kept_apart(agent, ready):
    running = Background(lambda: ready.run("x"))
    session, _, _ = agent.expect_start()
    for data, stream in ((b"o1", 1), (b"e1", 2), (b"o2", 1), (b"", 2), (b"", 1)):
        agent.output(session, data, stream)
    agent.exit(session, 3)
    done = running.result()
    assert (done.status, done.stdout, done.stderr, done.failure) == (3, b"o1o2", b"e1", "")


@pytest.mark.parametrize(
    ("how", "stage", "value", "status", "failure"),
    [
        (0, 0, 255, 255, ""),
        (1, 0, 9, 137, ""),
        (2, 4, 2, 127, "nosuch was not found in the guest."),
        (2, 4, 13, 126, "nosuch: Permission denied (in the guest)."),
        (2, 3, 2, 126, "nosuch was not run: its working directory in the guest: No such file or directory."),
        (2, 1, 11, 126, "nosuch was not begun, for the guest refused: Resource temporarily unavailable."),
    ],
)
def test_end_becomes_a_status_as_in_a_shell(agent, ready, how, stage, value, status, failure):
    running = Background(lambda: ready.run(["nosuch"]))
    agent.exit(agent.expect_start()[0], value, how=how, stage=stage)
    done = running.result()
    assert (done.status, done.failure) == (status, failure)


def test_input_goes_out_as_the_command_takes_it(agent, ready):
    data = bytes(range(256)) * 1024
    running = Background(lambda: ready.run("x", input=data))
    session, _, _ = agent.expect_start()
    came = b""
    while len(came) < len(data):
        piece = agent.expect(INPUT)[2]
        came += piece
        agent.send(frame(TAKEN, session, struct.pack("<I", len(piece))))
    assert agent.expect(INPUT)[2] == b""
    agent.exit(session)
    assert running.result().status == 0
    assert came == data


def test_no_more_input_is_sent_than_the_agent_has_room_for(agent, ready):
    process = Background(lambda: ready.start("x")).result()
    session, _, _ = agent.expect_start()
    assert process.offer(memoryview(bytes(100_000))) == 65536
    assert process.offer(memoryview(b"x")) == 0
    agent.send(frame(TAKEN, session, struct.pack("<I", 5)))
    in_time(lambda: process.write(b"12345"))


def test_input_of_a_command_that_has_ended_is_dropped(agent, ready):
    process = Background(lambda: ready.start("x")).result()
    agent.exit(agent.expect_start()[0])
    process.wait(30)
    in_time(lambda: process.write(bytes(1 << 20)))
    process.close_input()
    process.signal(2)


def test_room_is_granted_as_output_is_read(agent, ready):
    process = Background(lambda: ready.start("x")).result()
    session, _, payload = agent.expect_start()
    assert struct.unpack("<II", payload[8:]) == (WINDOW, WINDOW)
    for _ in range(WINDOW // 16384):
        agent.output(session, bytes(16384))
    got = 0
    while got < WINDOW:
        got += len(process.read(STDOUT))
    stream, _, payload = agent.expect(CREDIT)
    assert stream == 1
    assert WINDOW // 2 <= struct.unpack("<I", payload)[0] <= WINDOW


def test_reading_ends_with_the_stream(agent, ready):
    process = Background(lambda: ready.start("x")).result()
    session, _, _ = agent.expect_start()
    agent.output(session, b"last", 2)
    agent.output(session, b"", 2)
    assert in_time(lambda: process.read(STDERR)) == b"last"
    assert in_time(lambda: process.read(STDERR)) == b""


def test_time_limit_kills_the_command_and_frees_its_place(agent, ready):
    running = Background(lambda: ready.run(["sleep", "9"], timeout=0.01))
    session, _, _ = agent.expect_start()
    with pytest.raises(GuestTimeout, match="sleep did not end in time"):
        running.result()
    assert agent.expect(INPUT)[2] == b""
    assert agent.expect(SIGNAL)[2] == struct.pack("<I", 9)
    for _ in range(3 * WINDOW // 16384):  # more than the window: it is granted anew, and thrown away
        agent.output(session, bytes(16384))
        if _ % 8 == 7:
            agent.expect(CREDIT)
    agent.exit(session, 9, how=1)
    next_one = Background(lambda: ready.run("x"))
    agent.exit(agent.expect_start()[0])
    assert next_one.result().status == 0


def test_more_output_than_the_limit_is_an_error_and_kills(agent, ready):
    running = Background(lambda: ready.run("yes", limit=10))
    session, _, _ = agent.expect_start()
    agent.output(session, bytes(11))
    with pytest.raises(GuestError, match="put out more than 10 bytes"):
        running.result()


def test_more_commands_than_places_is_an_error(agent, guest):
    agent.begin(sessions=1)
    guest.wait_ready(30)
    guest.start("x")
    with pytest.raises(GuestError, match="runs 1 commands at a time"):
        guest.start("y")


def test_agent_that_ends_commands_which_it_never_reads_gets_no_more_of_them(agent, ready):
    begun = []
    with pytest.raises(GuestTimeout, match="did not answer within"):
        while len(begun) < 100:
            begun.append(ready.start(["x" * 60000], timeout=0.01))
            agent.exit(len(begun))
            in_time(begun[-1].wait)
    running = Background(lambda: ready.run("y", timeout=PATIENCE))
    for _ in begun:
        agent.expect_start()
    agent.exit(agent.expect_start()[0])
    assert running.result().status == 0


def test_commands_run_side_by_side(agent, ready):
    running = [Background(lambda name=name: ready.run([name])) for name in "abc"]
    sessions = {}
    while len(sessions) < 3:
        kind, _, session, payload = agent.next()
        if kind == 2:
            sessions[payload[1:2]] = session
    for name, session in reversed(sessions.items()):
        agent.output(session, name)
        agent.exit(session)
    assert [it.result().stdout for it in running] == [b"a", b"b", b"c"]


@pytest.mark.parametrize("command", [[], [""], ["a\0b"]])
def test_what_cannot_be_a_command_is_refused(ready, command):
    with pytest.raises(ConfigError):
        ready.run(command)


def test_a_description_beyond_the_agents_limit_is_refused(ready):
    with pytest.raises(GuestError, match="may have 65536 bytes, not"):
        ready.run(["x" * 65536])


def test_waiting_ends_when_the_guest_does(agent, ready):
    running = Background(lambda: ready.run("x"))
    agent.expect_start()
    agent.hang_up()
    with pytest.raises(GuestGone):
        running.result()


def test_waiting_ends_with_the_reason_it_is_aborted_for(agent, ready):
    running = Background(lambda: ready.run("x"))
    agent.expect_start()
    ready.abort("The guest panicked.")
    with pytest.raises(GuestGone, match=r"The guest panicked\."):
        running.result()
    with pytest.raises(GuestGone, match=r"The guest panicked\."):
        ready.run("y")


# Files


def test_put_sends_a_file_with_its_mode(agent, ready, tmp_path):
    path = tmp_path / "tool"
    path.write_bytes(b"#!")
    path.chmod(0o751)
    running = Background(lambda: ready.put(path, "/bin/tool"))
    session, spec, payload = agent.expect_start()
    assert (spec, payload[0], struct.unpack_from("<I", payload, 4)[0]) == ([b"a/bin/tool"], 1, 0o751)
    assert [agent.expect(INPUT)[2] for _ in range(2)] == [b"#!", b""]
    agent.exit(session)
    running.result()


def test_put_says_why_the_guest_refused(agent, ready):
    running = Background(lambda: ready.put(b"x", "/proc/x", mode=0o600))
    agent.exit(agent.expect_start()[0], 2, how=2, stage=5)
    with pytest.raises(GuestError, match=r"/proc/x: No such file or directory \(in the guest\)\."):
        running.result()


def test_put_of_a_file_that_is_not_there_is_the_users_mistake(ready):
    with pytest.raises(ConfigError, match=r"/nosuch cannot be read: No such file or directory\."):
        ready.put("/nosuch", "/x")


@pytest.mark.parametrize("size", [0, 2 * WINDOW], ids=["at its end", "on the way"])
@pytest.mark.parametrize("how", ["bytes", "file", "get", "save"])
def test_time_limit_gives_up_a_file_and_kills(agent, ready, tmp_path, how, size):
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    copy = {
        "bytes": lambda: ready.put(path.read_bytes(), "/x", timeout=0.01),
        "file": lambda: ready.put(path, "/x", timeout=0.01),
        "get": lambda: ready.get("/x", timeout=0.01),
        "save": lambda: ready.get("/x", tmp_path / "copy", timeout=0.01),
    }[how]
    running = Background(copy)
    session, _, _ = agent.expect_start()
    with pytest.raises(GuestTimeout, match="/x did not end in time"):
        running.result()
    while (found := agent.next())[0] != SIGNAL:
        assert found[0] == INPUT
    assert found[3] == struct.pack("<I", 9)
    agent.exit(session, 9, how=1)
    next_one = Background(lambda: ready.run("x"))
    agent.exit(agent.expect_start()[0])
    assert next_one.result().status == 0


def test_get_returns_or_saves_what_comes(agent, ready, tmp_path):
    for target in (None, tmp_path / "copy"):
        running = Background(lambda target=target: ready.get("/etc/x", target))
        session, spec, payload = agent.expect_start()
        assert (spec, payload[0]) == ([b"a/etc/x"], 2)
        agent.expect(INPUT)
        agent.output(session, b"data")
        agent.output(session, b"")
        agent.exit(session)
        assert running.result() == (b"data" if target is None else b"")
    assert target.read_bytes() == b"data"


# What no agent may do


@pytest.mark.parametrize(
    "data",
    [
        frame(18, 999, b"x", 1),
        frame(18, 1, bytes(16385), 1),
        frame(18, 1, b"x", 0),
        frame(18, 1, b"x", 3),
        frame(19, 1, struct.pack("<I", 1)),
        frame(19, 1, b""),
        frame(20, 1, b"short"),
        frame(17, 0, bytes(40)),
        frame(99, 1),
        frame(0, 0),
        struct.pack("<BBHI", 18, 1, 1, 0xFFFFFFFF),
        frame(18, 1, b"", 1) + frame(18, 1, b"after the end", 1),
        frame(18, 1, bytes(16384), 1) * (WINDOW // 16384 + 1),
    ],
)
def test_a_broken_frame_ends_the_connection(agent, ready, data):
    process = Background(lambda: ready.start("x")).result()
    assert agent.expect_start()[0] == 1
    agent.send(data)
    with pytest.raises(GuestProtocolError):
        in_time(lambda: process.wait(30))


@pytest.mark.parametrize(("how", "value"), [(0, 0xFFFFFFFF), (1, 0xFFFFFFFF), (2, 0xFFFFFFFF), (200, 7)])
def test_a_status_that_cannot_be_is_cut_to_one_that_can(agent, ready, how, value):
    running = Background(lambda: ready.run("x"))
    agent.exit(agent.expect_start()[0], value, how=how, stage=77)
    assert 0 <= running.result().status <= 255


def test_last_words_are_heard_of_a_guest_that_hears_no_more(agent, ready):
    running = Background(lambda: ready.start(["x"]))
    session, _, _ = agent.expect_start()
    process = running.result()
    with ready._channel.changed:  # the thread takes nothing before all this has happened
        for _ in range(4):
            agent.output(session, bytes(16384))
        agent.exit(session, 3)
        agent.hang_up()
        process.signal(1)
    assert in_time(process.wait) == 3
    assert len(process.take(STDOUT)) == 4 * 16384


def test_source_that_cannot_be_read_on_frees_its_place(agent, ready, tmp_path, monkeypatch):
    class Failing(io.BytesIO):
        def read(self, size=-1):
            raise OSError(5, "Input/output error")

        def fileno(self):
            return 0

    monkeypatch.setattr("builtins.open", lambda *_: Failing())
    copying = Background(lambda: ready.put("source", "/target"))
    session, _, _ = agent.expect_start()
    with pytest.raises(ConfigError, match="source cannot be read: Input/output error"):
        copying.result()
    assert agent.expect(SIGNAL)[1:] == (session, struct.pack("<I", 9))
