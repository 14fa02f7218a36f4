# SPDX-License-Identifier: Apache-2.0
"""``pyvmm ps``, ``stop`` and the others on guests that are fakes."""

import json
import os
import signal
import socket
import sys

import pytest
from fakes.threads import PATIENCE

from pyvmm.cli import guests, kill, ps
from pyvmm.control import runfolder
from pyvmm.outcome import POWEROFF, Outcome

# ps


def test_ps_shows_every_guest(start, run):
    start("one")
    start("two").pause()
    code, out, _ = run("ps")
    assert code == 0
    header, *rows = out.splitlines()
    assert header.split() == ["NAME", "STATE", "PID", "UPTIME", "MEM", "CPUS", "PROGRAM"]
    assert [row.split()[:3] for row in rows] == [
        ["one", "running", str(os.getpid())],
        ["two", "paused", str(os.getpid())],
    ]
    assert rows[0].split()[4:] == ["64M", "2", "Image"]


def test_list_is_another_name_of_ps(start, run):
    start("one")
    assert run("list", "--json")[0] == 0


def test_ps_as_json_is_a_list(start, run):
    assert run("ps", "--json") == (0, "[]\n", "")
    start("one")
    (found,) = json.loads(run("ps", "--json")[1])
    assert found["name"] == "one"
    assert found["where"] == "local"
    assert found["mem"] == 64 << 20


def test_ps_without_guests_says_so(run):
    assert run("ps") == (0, "", "pyvmm: no guest is running\n")


def test_ps_shows_a_guest_that_is_about_to_start(run):
    with_no_socket = runfolder.claim("young")
    assert [row.split()[:2] for row in run("ps")[1].splitlines()[1:]] == [["young", "starting"]]
    with_no_socket.release()


def test_ps_leaves_out_a_guest_that_ends_while_it_is_asked(run, monkeypatch):
    held = runfolder.claim("ending")
    connect = guests.connect
    monkeypatch.setattr(guests, "connect", lambda *args, **how: (held.release(), connect(*args, **how)))
    assert run("ps", "--json") == (0, "[]\n", "")


def test_ps_leaves_out_a_guest_whose_process_is_ending(run, command):
    it = command("true")
    os.waitid(os.P_PID, it.process.pid, os.WEXITED | os.WNOWAIT)  # and stay a zombie
    held = runfolder.claim("killed")
    with open(held.path("lock"), "w") as lock:
        lock.write(f"{it.process.pid}\n")
    assert run("ps", "--json") == (0, "[]\n", "")
    held.release()


def test_ps_does_not_wait_for_ever_for_a_guest_that_hangs(start, run, monkeypatch):
    monkeypatch.setattr(ps, "_PATIENCE", 0.05)
    start("fine")
    hung = runfolder.claim("hung")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(hung.path("control.sock"))
        listener.listen()
        rows = json.loads(run("ps", "--json")[1])
    hung.release()
    assert [row["name"] for row in rows] == ["fine", "hung"]
    assert rows[1]["state"] == "unreachable"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(7.9, "7s"), (192, "3m12s"), (18443, "5h07m"), (187200, "2d04h"), (0, "0s")]
)
def test_uptime_is_short(seconds, shown):
    from pyvmm.cli.ps import _duration

    assert _duration(seconds) == shown


# pause, resume, reset


@pytest.mark.parametrize(
    ("command", "call", "said"),
    [("pause", "pause", "paused"), ("resume", "resume", "running"), ("reset", "reset", "restarted")],
)
def test_guest_does_what_it_is_told(start, run, command, call, said):
    machine = start("one")
    assert run(command, "one") == (0, "", f"pyvmm: one: {said}\n")
    assert machine.calls == [call]


def test_name_may_be_left_out_when_one_guest_runs(start, run):
    machine = start("one")
    assert run("pause", "--json") == (0, '{\n  "name": "one",\n  "state": "paused"\n}\n', "")
    assert machine.calls == ["pause"]


def test_all_guests_are_reached_though_one_fails(start, run):
    first, second = start("one"), start("two")
    mute = runfolder.claim("mute")
    code, out, err = run("pause", "--all")
    assert (code, out) == (125, "")
    assert first.calls == second.calls == ["pause"]
    assert sorted(err.splitlines()) == [
        "pyvmm: mute: The guest mute is just starting or ending; try again in a moment.",
        "pyvmm: one: paused",
        "pyvmm: two: paused",
    ]
    code, out, _ = run("resume", "--all", "--json")
    assert code == 125
    assert [(one["name"], one["ok"]) for one in json.loads(out)] == [
        ("mute", False),
        ("one", True),
        ("two", True),
    ]
    mute.release()


def test_highest_code_of_all_guests_is_returned(start, run):
    start("one", obeys="power-key")
    start("two", obeys="nothing")
    code, _, err = run("stop", "--all", "--grace=10ms")
    assert code == 124
    assert sorted(line.split(": ")[1] for line in err.splitlines()) == ["one", "two"]


@pytest.mark.parametrize(
    ("command", "result"),
    [
        ("pause", {"state": "paused"}),
        ("resume", {"state": "running"}),
        ("reset", {"state": "running"}),
        ("kill", {"how": "ended"}),
    ],
)
def test_result_as_json_names_the_guest(start, run, command, result):
    start("one")
    code, out, err = run(command, "one", "--json")
    assert (code, json.loads(out), err) == (0, {"name": "one", **result}, "")


def test_all_of_no_guests_is_no_failure(run):
    assert run("stop", "--all") == (0, "", "pyvmm: no guest is running\n")


# stop, kill


@pytest.mark.parametrize(
    ("obeys", "code", "said"),
    [
        ("power-key", 0, "powered off"),
        ("sysrq", 0, "did not heed its power key within 0.01 s; its kernel powered off (SysRq)"),
        ("nothing", 124, "did not power off within 0.01 s, and was ended by force"),
    ],
)
def test_stop_says_what_it_took_and_the_name_is_free(start, run, obeys, code, said):
    start("one", obeys=obeys)
    assert run("stop", "one", "--grace=10ms") == (code, "", f"pyvmm: one: {said}\n")
    runfolder.claim("one").release()


def test_stop_tells_when_the_guest_ended_of_something_else(start, run):
    machine = start("one")
    machine.power_button = lambda: machine.end(Outcome("panic", "the guest panicked: x"))
    assert run("stop")[2] == "pyvmm: one: ended otherwise meanwhile: the guest panicked: x\n"


def test_stop_as_json_has_the_outcome(start, run):
    start("one")
    assert json.loads(run("stop", "--json")[1]) == {
        "name": "one",
        "how": "power-key",
        "reason": POWEROFF,
        "exit_code": 0,
        "message": "the guest powered off",
    }


def test_kill_ends_the_guest(start, run):
    machine = start("one")
    assert run("kill", "one") == (0, "", "pyvmm: one: ended\n")
    assert machine.ended.exit_code == 137
    assert runfolder.running() == []


def test_kill_kills_a_pyvmm_that_does_not_answer(run, command, monkeypatch):
    monkeypatch.setattr(kill, "_PATIENCE", PATIENCE)
    it = command(
        sys.executable,
        "-c",
        "from pyvmm.control import runfolder; held = runfolder.claim('stuck'); print('x', flush=True)\n"
        "import threading; threading.Event().wait()",
    )
    it.wait_for(b"x\n")
    said = f"pyvmm: stuck: its pyvmm (process {it.process.pid}) did not answer, and was killed\n"
    assert run("kill", "stuck") == (0, "", said)
    assert it.end()[0] == -signal.SIGKILL
    assert runfolder.running() == []


@pytest.mark.parametrize("when", ["before it is looked for", "before it is killed"])
def test_guest_that_ends_while_its_silent_pyvmm_is_to_be_killed_has_ended(run, monkeypatch, when):
    held = runfolder.claim("ending")  # by this process: a signal to it would be noticed
    look = runfolder.running

    def looked():
        """The second look is the one before the process is killed."""
        found = look()
        monkeypatch.setattr(runfolder, "running", lambda: (held.release(), look())[1])
        return found

    def killed(*_):
        raise ProcessLookupError(3, "No such process")

    if when == "before it is looked for":
        monkeypatch.setattr(runfolder, "running", looked)
    monkeypatch.setattr(kill.signal, "pidfd_send_signal", killed)
    assert run("kill", "ending") == (0, "", "pyvmm: ending: ended\n")
    held.release()


def test_kill_kills_a_pyvmm_that_hangs(run, command, start, monkeypatch):
    monkeypatch.setattr(kill, "_PATIENCE", 0.05)
    it = command(
        sys.executable,
        "-c",
        "import os, socket\nfrom pyvmm.control import runfolder\nheld = runfolder.claim('stuck')\n"
        "it = socket.socket(socket.AF_UNIX); it.bind(held.path('control.sock')); it.listen()\n"
        "print('x', flush=True); it.accept(); import threading; threading.Event().wait()",
    )
    it.wait_for(b"x\n")
    monkeypatch.setattr(kill.select, "select", lambda r, w, x, t: (r, w, x))
    assert "was killed" in run("kill", "stuck")[2]
    assert it.end()[0] == -signal.SIGKILL


# inspect, balloon, debug


def test_inspect_shows_the_machine_inside(start, run):
    start("one")
    code, out, _ = run("inspect", "one")
    assert code == 0
    assert "irqchip: aia" in out
    assert "base=0x80000000" in out
    assert json.loads(run("inspect", "--json")[1])["exits"] == {"mmio": 7}


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ([], "one: 0B wanted, 0B given\n"),
        (["64M"], "one: 64M wanted, 64M given\n"),
        (["+32"], "one: 32M wanted, 32M given\n"),
        (["one", "8M"], "one: 8M wanted, 8M given\n"),
        (["one", "-1G"], "one: 0B wanted, 0B given\n"),
        (["one"], "one: 0B wanted, 0B given\n"),
    ],
)
def test_balloon_takes_a_size_a_change_or_nothing(start, run, words, shown):
    start("one")
    assert run("balloon", *words) == (0, shown, "")


def test_balloon_shrinks_by_a_size(start, run):
    start("one").set_balloon(64 << 20)
    assert run("balloon", "-16M")[1] == "one: 48M wanted, 48M given\n"
    assert json.loads(run("balloon", "--json")[1])["wanted"] == 48 << 20


def test_guest_with_the_name_of_a_size_is_meant_by_it(start, run):
    start("64M")
    assert run("balloon", "64M")[1] == "64M: 0B wanted, 0B given\n"


def test_debug_shows_registers(start, run):
    start("one")
    assert run("debug", "regs", "--cpu=1")[1].startswith("CPU 1:\npc         ffffffff80000001  ra  ")
    assert json.loads(run("debug", "one", "regs", "--json")[1])["registers"]["ra"] == "0x1"


def test_debug_shows_memory(start, run):
    start("one")
    _, out, _ = run("debug", "one", "mem", "0x80000030", "20")
    assert out.splitlines() == [
        "0000000080000030  30 31 32 33 34 35 36 37  38 39 3a 3b 3c 3d 3e 3f  |0123456789:;<=>?|",
        "0000000080000040  40 41 42 43                                       |@ABC|",
    ]


def test_debug_shows_much_memory_in_pieces(start, run):
    start("one")
    _, out, _ = run("debug", "mem", "0x80000000", "0x80000", "--json")
    assert bytes.fromhex(json.loads(out)["data"]) == bytes(range(256)) * 0x800


def test_debug_sends_sysrq(start, run):
    machine = start("one")
    said = "pyvmm: one: SysRq h sent; what comes of it is on the console\n"
    assert run("debug", "sysrq", "h") == (0, "", said)
    assert machine.calls == [("sysrq", "h")]


# Mistakes


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["pause", "oen"], "No guest named oen is running. Did you mean one?"),
        (["pause", "zzz"], "No guest named zzz is running. pyvmm ps lists those that are."),
        (["pause", "a/b"], "A guest cannot be called 'a/b': "),
        (["pause"], "Several guests are running: name one of one, two."),
        (["pause", "one", "two"], "NAME was given twice: 'one' and 'two'."),
        (["pause", "one", "--all"], "pyvmm pause takes a NAME or --all, not both."),
        (["attach", "oen"], "No guest named oen is running. Did you mean one?"),
        (["attach", "--json"], "pyvmm attach has no option --json."),
        (["stop", "one", "--grace=soon"], "--grace takes a duration such as 500ms, 30s or 5m, not 'soon'."),
        (["stop", "nobody", "--grace=soon"], "--grace takes a duration such as 500ms, 30s or 5m"),
        (["stop", "--al"], "pyvmm stop has no option --al. Did you mean --all?"),
        (["kill", "oen"], "No guest named oen is running. Did you mean one?"),
        (["resume", "--grace=1s"], "pyvmm resume has no option --grace."),
        (["inspect", "--all"], "pyvmm inspect has no option --all."),
        (["ps", "one"], "pyvmm ps takes no argument, but got 'one'. See pyvmm ps --help."),
        (["ps", "--host=mars"], "--host takes one of auto, local, lab"),
        (["balloon", "one", "much"], "pyvmm balloon takes a size such as 512M or 2G"),
        (["balloon", "one", "+1.5G"], "pyvmm balloon takes a size such as 512M or 2G"),
        (["balloon", "one", "1G", "2G"], "pyvmm balloon takes a NAME and a SIZE, but got '2G' as well."),
        (["debug"], "pyvmm debug needs one of regs, mem, sysrq to do."),
        (["debug", "one"], "pyvmm debug needs one of regs, mem, sysrq to do."),
        (["debug", "one", "rgs"], "pyvmm debug cannot do 'rgs'. Did you mean regs?"),
        (["debug", "one", "regs", "1"], "pyvmm debug regs takes no argument, but got '1'"),
        (["debug", "one", "regs", "--cpu=x"], "--cpu takes a number such as 64 or 0x80200000, not 'x'."),
        (["debug", "one", "regs", "--cpu=7"], "There is no CPU 7: this guest has 2."),
        (["debug", "one", "mem"], "pyvmm debug mem takes an ADDRESS and a LENGTH"),
        (["debug", "one", "mem", "here"], "ADDRESS takes a number such as 64 or 0x80200000, not 'here'."),
        (["debug", "one", "mem", "-1"], "ADDRESS takes a number such as 64 or 0x80200000, not '-1'."),
        (["debug", "one", "mem", "0", "0"], "pyvmm debug mem shows 1 to 16777216 bytes, not 0."),
        (["debug", "one", "mem", "0x10"], "There is no memory at 0x10."),
        (["debug", "one", "mem", "0", "--cpu=0"], "--cpu has no meaning with pyvmm debug mem; leave it out."),
        (["debug", "one", "sysrq"], "pyvmm debug sysrq takes a KEY, which is one letter or digit."),
        (["debug", "one", "sysrq", "help"], "pyvmm debug sysrq takes a KEY, which is one letter or digit."),
    ],
)  # fmt: skip
def test_mistake_is_one_sentence_with_code_125(start, run, words, sentence):
    start("one")
    start("two")
    code, out, err = run(*words)
    assert (code, out) == (125, "")
    assert err.startswith(f"pyvmm: {sentence}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "command", ["attach", "stop", "kill", "pause", "resume", "reset", "inspect", "balloon"]
)
def test_command_without_any_guest_says_how_to_start_one(run, command):
    assert run(command) == (125, "", "pyvmm: No guest is running; start one with pyvmm run.\n")
