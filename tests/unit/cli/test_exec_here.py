# SPDX-License-Identifier: Apache-2.0
"""``pyvmm exec`` on this host: how a guest's end before the command's is told, and the command's streams."""

import contextlib
import errno
import os
import signal
import sys
import threading

import pytest
from fakes.agent import INPUT, SIGNAL, FakeAgent
from fakes.threads import PATIENCE, Background, happens

from pyvmm import outcome
from pyvmm.cli import exec as command_module
from pyvmm.cli import executing
from pyvmm.cli.executing import _Run
from pyvmm.guest.client import Guest
from pyvmm.outcome import Outcome

# With guests that know nothing of an agent


@pytest.fixture
def pyvmm_exec(command, image, tmp_path):
    """Starts ``pyvmm exec`` with a guest of ``fakes.command``."""

    def start(guest, *words, **options):
        (tmp_path / "initrd").write_bytes(b"x")
        machine = ["--mem=16M", "--console=serial", f"--kernel={image}", f"--initrd={tmp_path}/initrd"]
        words = ["exec", "--host=local", *machine, *words]
        env = {"PYVMM_RUN_DIR": str(tmp_path / "run")}
        return command(sys.executable, "-m", "fakes.command", guest, *words, env=env, **options)

    return start


@pytest.mark.parametrize(
    ("guest", "words", "code", "said"),
    [
        ("hello", [], 125, "the guest powered off, and the command had not ended"),
        ("reboot", [], 125, "the guest asked for a reboot, and the command had not ended"),
        (
            "panic",
            [],
            255,
            "the guest panicked: Kernel panic - not syncing: x, and the command had not ended",
        ),
        (
            "idle",
            ["--timeout=50ms"],
            124,
            "the guest did not end within 0.05 s, and the command had not ended",
        ),
        ("misaligned", [], 254, "the guest cannot go on at pc 0x80200000"),
    ],
)
def test_guest_that_ends_first_is_told_with_its_exit_code(pyvmm_exec, guest, words, code, said):
    got, out, err = pyvmm_exec(guest, *words, "--", "true").end()
    assert (got, out) == (code, b"")
    assert err.splitlines()[-1].startswith(f"pyvmm: {said}")


def test_last_lines_of_the_console_are_shown_when_the_guest_ends_first(pyvmm_exec):
    lines = pyvmm_exec("hello", "--", "true").end()[2].splitlines()
    assert lines[:2] == ["pyvmm: the last lines of the guest's console:", "hello"]


def test_console_goes_to_the_log(pyvmm_exec, tmp_path):
    pyvmm_exec("hello", f"--log={tmp_path}/log", "--", "true").end()
    assert (tmp_path / "log").read_bytes() == b"hello\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signal_before_the_command_runs_ends_the_guest_and_shows_how_far_it_was(pyvmm_exec, number, tmp_path):
    it = pyvmm_exec("idle", f"--log={tmp_path}/log", "--", "true")
    while not (tmp_path / "log").exists() or not (tmp_path / "log").read_bytes():
        os.sched_yield()
    it.send(number)
    code, _, err = it.end()
    assert code == 128 + number
    assert err.splitlines()[1:] == ["ready", f"pyvmm: ended by {number.name}, and the command had not ended"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "pyvmm exec needs a command to run, after --: pyvmm exec [options] [KERNEL] -- COMMAND..."),
        (["-f", "u-boot", "--", "x"], "pyvmm exec needs a kernel: firmware cannot bring the agent"),
        (["--agent", "--", "x"], "pyvmm exec has no option --agent."),
        (["-p", "rdinit=/x", "Image", "--", "x"], "--agent needs rdinit= for itself"),
    ],
)
def test_mistake_is_one_sentence_and_code_125(command, words, sentence):
    code, _, err = command(sys.executable, "-m", "pyvmm", "exec", "--host=local", *words).end()
    assert (code, len(err.splitlines())) == (125, 1)
    assert err.startswith(f"pyvmm: {sentence}")


# Which machine it makes


def machine_of(words):
    values = command_module.COMMAND.parse(words)
    command_module._add_root(values)
    return values


def test_folder_becomes_the_root_read_only(tmp_path):
    values = machine_of(["--rootfs", f"{tmp_path}", "-p", "quiet", "Image", "--", "x"])
    assert values["p9"] == [f"{tmp_path},root"]
    assert values["params"] == "init=/pyvmm-agent root=root rootfstype=9p ro quiet"


def test_folder_becomes_the_root_to_be_written_when_asked(tmp_path):
    values = machine_of([f"--rootfs={tmp_path},rw", "--", "x"])
    assert (values["p9"], values["params"].split()[-1]) == ([f"{tmp_path},root,rw"], "rw")


@pytest.mark.parametrize(
    ("words", "params"),
    [
        (["-d", "a.img"], "init=/pyvmm-agent root=/dev/vda rw"),
        (["-d", "a.img,ro"], "init=/pyvmm-agent root=/dev/vda ro"),
        (["-d", "a.img", "-p", "root=/dev/vda1"], "init=/pyvmm-agent root=/dev/vda1"),
        (["-d", "a.img", "-p", "init=/sbin/init"], "root=/dev/vda rw init=/sbin/init"),
        (["-d", "a.img", "-i", "initrd"], ""),
        (["-p", "quiet"], "init=/pyvmm-agent quiet"),
    ],
)
def test_disk_becomes_the_root_and_the_agent_init_unless_there_is_another(words, params):
    assert machine_of([*words, "--", "x"])["params"] == params


@pytest.fixture
def debian(monkeypatch):
    """Debian's guest by name only."""
    monkeypatch.setattr("pyvmm.lab.guests.kernel", lambda progress: "/Image")
    monkeypatch.setattr(
        "pyvmm.lab.guests.initrd", lambda full=False, progress=None: "/large.cpio" if full else "/small.cpio"
    )


def guest_of(words):
    values = machine_of(words)
    del values["command"]
    command_module._add_debian_guest(values, quiet=True)
    return {noun: values.get(noun) for noun in ("kernel", "initrd", "params", "mem")}


def test_debians_guest_has_the_drivers_of_its_devices(debian, image, tmp_path):
    small = {"kernel": "/Image", "initrd": "/small.cpio", "params": "init=/pyvmm-agent", "mem": None}
    full = {**small, "initrd": "/large.cpio", "params": "drivers=all init=/pyvmm-agent", "mem": "512M"}
    assert guest_of(["--", "x"]) == small
    for device in ("--rng", "--device=edu", "--balloon", "--vsock=7", f"--9p={tmp_path}"):
        assert guest_of([device, "--", "x"]) == full
    assert guest_of(["--rng", "--mem=1G", "--", "x"])["mem"] == "1G"
    (tmp_path / "disk").write_bytes(bytes(512))
    rooted = guest_of([f"--disk={tmp_path}/disk", "--", "x"])
    assert rooted == {**full, "params": "drivers=all init=/pyvmm-agent root=/dev/vda rw"}


def test_kernel_of_the_users_has_no_drivers_of_debians(debian, image, tmp_path):
    expected = {"kernel": str(image), "initrd": "/small.cpio", "params": "init=/pyvmm-agent", "mem": None}
    assert guest_of(["--rng", str(image), "--", "x"]) == expected


# The command's streams, with a machine and an agent that do what the test says


class StubMachine:
    def __init__(self):
        self.ends = []
        self.started = threading.Event()
        self.listener = lambda event: None

    def start(self):
        self.started.set()

    def subscribe(self, callback):
        self.listener = callback
        return lambda: None

    def end(self, end):
        self.ends.append(end)
        self.listener({"event": "ended", "message": end.message})

    def wait(self):
        return self.ends[0]

    def observe_console(self, callback):
        callback(b"\x1b[31mbad\xff\nlast line\n")
        return lambda: None


class StubReach:
    def open(self, machine):
        pass


@pytest.fixture
def stubs(monkeypatch):
    """Machine, agent, and what runs a command in them, whose standard input is a pipe."""
    agent, machine = FakeAgent(), StubMachine()
    read_end, write_end = os.pipe()
    keep = os.dup(0)
    os.dup2(read_end, 0)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    with Guest(agent.client) as guest:
        run = _Run(machine, guest)
        running = Background(lambda: run.main(StubReach(), ["cmd"], new_root=False))
        happens(machine.started)
        agent.begin()
        yield machine, agent, run, running, write_end
    agent.hang_up()
    os.dup2(keep, 0)
    for fd in (keep, read_end):
        os.close(fd)


def power_off(machine, agent):
    while agent.next()[0] != 7:
        pass
    machine.end(Outcome(outcome.POWEROFF, "the guest powered off"))


def test_streams_are_the_commands_and_so_is_the_status(stubs, capfdbinary):
    machine, agent, _, running, stdin = stubs
    session, spec, _ = agent.expect_start()
    assert spec[0] == b"acmd"
    os.write(stdin, b"in\0\xff")
    assert agent.expect(INPUT)[2] == b"in\0\xff"
    os.close(stdin)
    assert agent.expect(INPUT)[2] == b""
    agent.output(session, b"out\0\xfe")
    agent.output(session, b"err", 2)
    agent.exit(session, 7)
    power_off(machine, agent)
    assert running.result() == 7
    assert capfdbinary.readouterr() == (b"out\0\xfe", b"err")


def test_guest_that_ends_with_the_command_does_not_change_its_status(stubs, capfd):
    machine, agent, run, running, stdin = stubs
    session, _, _ = agent.expect_start()
    while run._process is None:
        os.sched_yield()
    agent.exit(session, 5)
    assert run._process.wait(PATIENCE) == 5
    machine.end(Outcome(outcome.POWEROFF, "the guest powered off"))
    assert running.result() == 5
    assert capfd.readouterr().err == ""
    os.close(stdin)


def test_command_that_is_not_there_is_127_and_said(stubs, capfd):
    machine, agent, _, running, stdin = stubs
    agent.exit(agent.expect_start()[0], 2, how=2, stage=4)
    power_off(machine, agent)
    assert running.result() == 127
    assert capfd.readouterr().err == "pyvmm: cmd was not found in the guest.\n"
    os.close(stdin)


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ({"value": 13, "how": 2, "stage": 4}, 126, "pyvmm: cmd: Permission denied (in the guest).\n"),
        ({"value": 9, "how": 1}, 137, ""),
    ],
    ids=["not executable", "killed"],
)
def test_command_that_cannot_be_run_or_is_killed_has_the_status_of_a_shell(stubs, capfd, end, code, said):
    machine, agent, _, running, stdin = stubs
    agent.exit(agent.expect_start()[0], **end)
    power_off(machine, agent)
    assert running.result() == code
    assert capfd.readouterr().err == said
    os.close(stdin)


def test_first_interrupt_is_the_commands_and_the_second_ends_the_guest(stubs, capfd):
    machine, agent, run, running, stdin = stubs
    agent.expect_start()
    while run._process is None:
        os.sched_yield()
    run._on_signal(signal.SIGINT, None)
    assert agent.expect(SIGNAL)[2] == b"\2\0\0\0"
    assert not machine.ends
    run._on_signal(signal.SIGINT, None)
    assert running.result() == 130
    assert capfd.readouterr().err == "pyvmm: ended by SIGINT, and the command had not ended\n"
    os.close(stdin)


def test_guest_that_ends_is_told_though_its_agent_went_first(stubs, capfd):
    machine, agent, _, running, stdin = stubs
    agent.expect_start()
    agent.hang_up()
    machine.end(Outcome(outcome.PANIC, "the guest panicked: x"))
    assert running.result() == 255
    said = capfd.readouterr().err.splitlines()
    assert said[-1] == "pyvmm: the guest panicked: x, and the command had not ended"
    os.close(stdin)


@contextlib.contextmanager
def stuck_output():
    """Standard output is a pipe that nobody reads; gives its reading end, which the test closes."""
    read_end, write_end = os.pipe()
    keep = os.dup(1)
    os.dup2(write_end, 1)
    os.close(write_end)
    try:
        yield read_end
    finally:
        os.dup2(keep, 1)
        os.close(keep)


def leave_output(agent, size):
    """Have the command write more than a pipe holds, and end with status 3."""
    session, _, _ = agent.expect_start()
    for _ in range(size // 4000):
        agent.output(session, bytes(4000))
    agent.exit(session, 3)


def test_signal_ends_it_though_nobody_reads_what_a_command_left(stubs, capfd):
    machine, agent, run, running, stdin = stubs
    with stuck_output() as reader:
        leave_output(agent, 240_000)
        while run._process is None or run._process.status is None:
            os.sched_yield()
        run._on_signal(signal.SIGTERM, None)
        assert running.result() == 143
        os.close(reader)
        while len(machine.ends) < 2:  # the thread that was stuck has noticed
            os.sched_yield()
    assert capfd.readouterr().err == "pyvmm: ended by SIGTERM\n"
    os.close(stdin)


def leave_output_before_the_end_is_told(machine, agent, run):
    """The command has ended well when passing its output on fails; that this ends the guest is told later."""
    machine.listener = lambda event: None
    leave_output(agent, 240_000)
    while run._process is None or run._process.status is None:
        os.sched_yield()


def test_reader_of_the_output_that_goes_away_ends_it_quietly(stubs, capfd):
    machine, agent, run, running, stdin = stubs
    with stuck_output() as reader:
        leave_output_before_the_end_is_told(machine, agent, run)
        os.close(reader)
        assert running.result() == 141
    assert capfd.readouterr().err == ""
    os.close(stdin)


def test_output_that_cannot_be_written_is_a_failure_whatever_the_status(stubs, monkeypatch):
    machine, agent, run, running, stdin = stubs
    written = threading.Event()

    def write_all(fd, data):
        happens(written)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(executing.streams, "write_all", write_all)
    leave_output_before_the_end_is_told(machine, agent, run)
    written.set()
    with pytest.raises(OSError, match="No space left"):
        running.result()
    os.close(stdin)


def test_output_that_somebody_made_non_blocking_is_waited_for(stubs):
    machine, agent, _, running, stdin = stubs
    with stuck_output() as reader:
        os.set_blocking(1, False)
        leave_output(agent, 240_000)
        got = 0
        while got < 240_000:
            got += len(os.read(reader, 1 << 16))
        power_off(machine, agent)
        assert running.result() == 3
        os.close(reader)
    os.close(stdin)


def test_input_that_somebody_made_non_blocking_is_waited_for(stubs):
    machine, agent, _, running, stdin = stubs
    os.set_blocking(0, False)
    session, _, _ = agent.expect_start()
    os.write(stdin, b"in")
    assert agent.expect(INPUT)[2] == b"in"
    agent.exit(session, 0)
    power_off(machine, agent)
    assert running.result() == 0
    os.close(stdin)


def test_agent_that_goes_away_is_told_with_a_console_that_cannot_hurt_the_terminal(stubs, capfd, monkeypatch):
    monkeypatch.setattr(executing, "_LAST_WORD", 0)
    _, agent, _, running, stdin = stubs
    agent.expect_start()
    agent.hang_up()
    assert running.result() == 125
    lines = capfd.readouterr().err.splitlines()
    assert lines[1:3] == ["[31mbad\ufffd", "last line"]
    assert lines[3] == "pyvmm: The guest closed the connection to its agent, or ended."
    os.close(stdin)
