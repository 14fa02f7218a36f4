# SPDX-License-Identifier: Apache-2.0
import base64
import contextlib
import errno
import json
import os
import socket

import pytest
from fakes.controlled import Client, FakeMachine, eventually, modes
from fakes.threads import Background, happens, in_time

from pyvmm import __version__, control
from pyvmm.control import protocol, requests, runfolder, stopping
from pyvmm.control import served as served_module
from pyvmm.control import server as server_module
from pyvmm.errors import ConfigError, MachineError
from pyvmm.eventloop import EventLoop
from pyvmm.outcome import PANIC, POWEROFF, Outcome


def test_sockets_are_for_their_owner_only(server):
    assert modes(server.folder) == {".": 0o700, "lock": 0o600, "control.sock": 0o600, "console.sock": 0o600}


def test_second_guest_of_the_same_name_is_refused_and_the_first_goes_on(server, connect):
    with pytest.raises(ConfigError, match="A guest named guest is running"):
        control.serve(FakeMachine(), "guest")
    assert connect().ask("status")["ok"]


def test_guest_without_a_name_gets_one(machine):
    with control.serve(machine) as served:
        assert served.name == "vm1"
        assert [found.name for found in runfolder.running()] == ["vm1"]


def test_client_is_greeted_with_name_and_versions(connect):
    assert connect().greeting == {
        "pyvmm": __version__,
        "protocol": 1,
        "name": "guest",
        "pid": os.getpid(),
    }


def test_answers_carry_the_id_of_their_requests_in_order(connect):
    client = connect()
    client.send(b'{"id":1,"do":"pause"}\n{"id":"two","do":"status"}\n{"do":"resume"}\n')
    answers = [client.line() for _ in range(3)]
    assert [answer["id"] for answer in answers] == [1, "two", None]
    assert answers[1]["result"]["state"] == "paused"


def test_status_says_what_runs(connect, machine):
    status = connect().ask("status")["result"]
    assert status.items() >= {"name": "guest", "state": "running", "mem": 64 << 20, "cpus": 2}.items()
    assert status["program"] == "Image"
    assert (status["uptime"], status["started"]) == (machine.uptime, machine.started_at)


def test_guest_that_was_not_started_has_no_uptime(connect, machine):
    machine.uptime, machine.started_at = 0.0, None
    status = connect().ask("status")["result"]
    assert (status["uptime"], status["started"]) == (0.0, None)


@pytest.mark.parametrize("do", ["pause", "resume", "reset", "power_button"])
def test_simple_requests_reach_the_machine(connect, machine, do):
    assert connect().ask(do) == {"id": 7, "ok": True, "result": {}}
    assert machine.calls == [do]


def test_refusal_of_the_machine_is_its_sentence(connect):
    assert connect().ask("registers", cpu=5) == {
        "id": 7,
        "ok": False,
        "error": "There is no CPU 5: this guest has 2.",
    }


def test_registers_and_memory_come_without_loss(connect):
    client = connect()
    assert client.ask("registers", cpu=1)["result"]["registers"]["pc"] == "0xffffffff80000001"
    found = client.ask("memory", address="0x80000010", length=4)["result"]
    assert found == {"address": 0x8000_0010, "length": 4, "data": "10111213"}


def test_balloon_takes_a_size_or_a_change(connect):
    client = connect()
    assert client.ask("balloon")["result"]["wanted"] == 0
    assert client.ask("balloon", size=100)["result"]["wanted"] == 100
    assert client.ask("balloon", delta=-30)["result"]["wanted"] == 70
    assert client.ask("balloon", delta=-300)["result"]["wanted"] == 0
    assert client.ask("balloon", size=1, delta=1)["error"] == "balloon takes size or delta, not both."


def test_inspection_comes_whole(connect, machine):
    assert connect().ask("inspect")["result"] == machine.inspect()


def test_text_is_typed_and_the_terminal_resized(connect, machine):
    client = connect()
    assert client.ask("send", text="hé\n")["ok"]
    assert machine.typed == ["hé\n".encode()]
    assert client.ask("resize", columns=132, rows=50)["ok"]
    assert machine.calls == [("resize", 132, 50)]


def test_trace_is_marked_with_one_line(connect, machine):
    client = connect()
    assert client.ask("mark", text="before the disk")["ok"]
    assert machine.calls == [("mark", "before the disk")]
    for text in ("", "two\nlines", "x" * 201, 3):
        assert client.ask("mark", text=text)["error"] == "text takes 1 to 200 printable letters."


def test_guest_that_does_not_read_cannot_be_typed_at_for_ever(connect, machine):
    machine.reads_input = False
    client = connect()
    for _ in range(2):
        assert client.ask("send", text="x" * (500 << 10))["ok"]
    refused = client.ask("send", text="x" * (500 << 10))
    assert refused["error"] == "The guest has not yet read what was typed before."
    for taken in machine.untaken:
        taken()
    assert client.ask("send", text="x" * (500 << 10))["ok"]


@pytest.mark.parametrize(
    "params", [{"do": "send", "text": ""}, {"do": "send", "text": "x"}, {"do": "sysrq", "key": "h"}]
)
def test_many_small_inputs_count_for_what_they_cost(connect, machine, params):
    machine.reads_input = False
    client = connect()
    answers = []
    while len(answers) < 5000 and (not answers or answers[-1]["ok"]):
        answers.append(client.ask(**params))
    assert answers[-1]["error"] == "The guest has not yet read what was typed before."


def test_sysrq_that_is_refused_does_not_count_as_unread(connect, machine, monkeypatch):
    monkeypatch.setattr(served_module, "_MOST_UNREAD", 1000)
    client = connect()
    machine.config.console = "none"
    refusals = [client.ask("sysrq", key="h")["error"] for _ in range(3)]
    assert refusals == ["the guest has no console"] * 3


def test_kept_console_output_can_be_had(connect, machine):
    machine.prints(b"Linux \xff\x1b[0m\n")
    log = connect().ask("console_log")["result"]["data"]
    assert base64.b64decode(log) == b"Linux \xff\x1b[0m\n"


@pytest.mark.parametrize(
    ("do", "params", "sentence"),
    [
        ("paus", {}, "There is no request 'paus'. Did you mean pause?"),
        ("x" * 1000, {}, f"There is no request '{'x' * 60}'."),
        ("stop", {"garce": 1}, "The request stop has no parameter 'garce'. Did you mean grace?"),
        ("stop", {"grace": -1}, "grace takes a number of seconds."),
        ("stop", {"grace": "5"}, "grace takes a number of seconds."),
        ("stop", {"grace": True}, "grace takes a number of seconds."),
        ("stop", {"grace": -(10**400)}, "grace takes a number of seconds."),
        ("memory", {}, "The request memory needs the parameter 'address'."),
        ("memory", {"address": -1}, "address takes a whole number from 0 to 18446744073709551615."),
        ("memory", {"address": "80"}, "address takes a whole number from 0 to 18446744073709551615."),
        ("memory", {"address": "0xzz"}, "address takes a whole number from 0 to 18446744073709551615."),
        ("memory", {"address": 1.5}, "address takes a whole number from 0 to 18446744073709551615."),
        ("memory", {"address": 0, "length": 0}, "length takes a whole number from 1 to 262144."),
        ("memory", {"address": 0, "length": 1 << 30}, "length takes a whole number from 1 to 262144."),
        ("registers", {"cpu": None}, "cpu takes a whole number from 0 to 1023."),
        ("sysrq", {"key": "bb"}, "key takes one letter or digit."),
        ("sysrq", {"key": "\u0001"}, "key takes one letter or digit."),
        ("resize", {"columns": 80}, "The request resize needs the parameter 'rows'."),
        ("resize", {"columns": 0, "rows": 1}, "columns takes a whole number from 1 to 65535."),
        ("send", {"text": 5}, "text takes a text."),
        ("balloon", {"size": -1}, "size takes a whole number from 0 to 18446744073709551615."),
    ],
)  # fmt: skip
def test_wrong_request_is_one_sentence_and_harms_nothing(connect, do, params, sentence):
    client = connect()
    assert client.ask(do, **params) == {"id": 7, "ok": False, "error": sentence}
    assert client.ask("status")["ok"]


@pytest.mark.parametrize(
    "garbage", [b"\n\n\x00\xff\n", b"GET / HTTP/1.1\n", b"[" * 70_000 + b"\n", b"x" * (3 << 20) + b"\n"]
)
def test_garbage_gets_an_error_and_the_next_request_an_answer(connect, garbage):
    client = connect()
    sending = Background(lambda: client.send(garbage + b'{"id":9,"do":"status"}\n'))
    answers = [client.line()]
    while answers[-1]["id"] != 9:
        answers.append(client.line())
    sending.result()
    assert answers[-1]["ok"]
    assert not any(answer["ok"] for answer in answers[:-1])
    assert len(answers) == 2


def test_unforeseen_failure_is_told_and_harms_nobody(connect, machine):
    machine.inspect = lambda: {"not": b"JSON"}
    client = connect()
    assert client.ask("inspect")["error"].startswith("pyvmm failed at this: TypeError")
    assert client.ask("status")["ok"]


def test_client_that_is_busy_or_silent_holds_up_no_other(connect, machine):
    machine.gate.clear()
    busy, silent, half = connect(), connect(), connect()
    busy.send(b'{"id":1,"do":"pause"}\n')
    half.send(b'{"id":1,')
    happens(machine.pausing)
    other = connect()
    assert other.ask("status")["ok"]
    assert other.ask("kill")["ok"]
    machine.gate.set()
    assert busy.line()["ok"]
    silent.close()


def test_client_that_never_reads_is_bounded_and_dropped(connect, monkeypatch):
    monkeypatch.setattr(server_module, "_STALLED", 0.05)
    greedy = connect()

    def flood():
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                greedy.send(b'{"do":"status"}\n' * 1000)

    in_time(flood)
    assert connect().ask("status")["ok"]


def test_client_that_reads_late_gets_every_answer(connect, monkeypatch):
    monkeypatch.setattr(server_module, "_STALLED", 3600.0)  # a busy host may be later than that
    client = connect()
    count = 5000  # their answers are several times what may be unread
    sending = Background(lambda: client.send(b'{"id":1,"do":"status"}\n' * count))
    for _ in range(count):
        assert client.line()["ok"]
    sending.result()


def test_no_more_is_read_from_a_client_than_is_worked_on(connect, server, monkeypatch):
    held = []
    feed = protocol.Lines.feed

    def spy(lines, data):
        feed(lines, data)
        held.append(len(lines._buffer))

    monkeypatch.setattr(protocol.Lines, "feed", spy)
    client = connect()
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    sending = Background(lambda: (client.send(b"1\n" * (1 << 18)), client.socket.shutdown(socket.SHUT_WR)))
    assert client.rest().count(b"\n") == 1 << 18
    sending.result()
    assert max(held) <= 128 << 10


def test_client_may_stop_sending_and_still_be_answered(connect):
    client = connect()
    client.send(b'{"id":1,"do":"pause"}\n{"id":2,"do":"status"}\n')
    client.socket.shutdown(socket.SHUT_WR)
    answers = [json.loads(line) for line in client.rest().splitlines()]
    assert [answer["id"] for answer in answers] == [1, 2]


def test_request_of_a_client_that_has_gone_is_carried_out(connect, machine):
    gone = connect()
    gone.send(b'{"do":"pause"}\n')
    gone.close()
    happens(machine.pausing)
    assert connect().ask("status")["ok"]


def test_clients_that_go_while_their_requests_wait_still_count(connect, server, machine, monkeypatch):
    monkeypatch.setattr(server_module, "MOST_CLIENTS", 2)
    machine.gate.clear()
    for _ in range(2):
        gone = connect()
        gone.send(b'{"do":"pause"}\n')
        happens(machine.pausing)
        machine.pausing.clear()
        gone.close()
    refused = Client(os.path.join(server.folder, "control.sock"))
    assert "Too many clients" in refused.line()["error"]
    refused.close()
    machine.gate.set()
    eventually(lambda: not server._sessions)
    assert connect().ask("status")["ok"]


def test_host_that_gives_no_thread_refuses_the_request_and_harms_nobody(connect, machine, monkeypatch):
    def no_thread(target, name):
        raise RuntimeError("can't start new thread")

    client = connect()
    monkeypatch.setattr(server_module, "start_thread", no_thread)
    assert client.ask("pause")["error"] == "The host gives pyvmm no further thread for this."
    assert client.ask("status")["ok"]
    assert machine.ended is None


def test_beyond_a_bound_clients_are_refused_with_a_sentence(connect, server, monkeypatch):
    clients = [connect() for _ in range(64)]
    refused = Client(os.path.join(server.folder, "control.sock"))
    assert refused.line()["error"] == "Too many clients are connected; close one of them."
    assert refused.rest() == b""
    refused.close()
    clients[0].close()
    assert clients[1].ask("status")["ok"]


def test_thousands_of_connections_leave_nothing_behind(connect, server):
    path = os.path.join(server.folder, "control.sock")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2000):
        Client(path).close()
    connect().ask("status")
    assert len(os.listdir("/proc/self/fd")) < before + 70
    assert connect().ask("status")["ok"]


def test_no_free_descriptor_delays_clients_and_harms_nobody(connect, server, monkeypatch):
    client = connect()
    accept, failures = server._listener._socket.accept, [24, 24]

    class Listening:
        fileno = server._listener._socket.fileno
        close = server._listener._socket.close

        def accept(self):
            if failures:
                raise OSError(failures.pop(), "Too many open files")
            return accept()

    server._listener._socket = Listening()
    assert connect().ask("status")["ok"]
    assert client.ask("status")["ok"]


# Events


def test_events_come_with_their_time_to_those_who_asked(connect, machine):
    listener, other = connect(), connect()
    assert listener.ask("events") == {"id": 7, "ok": True, "result": {}}
    assert other.ask("pause")["ok"]
    event = listener.line()
    assert event.pop("time") >= 0
    assert event == {"event": "paused"}
    assert other.ask("status")["ok"]


def test_listener_can_ask_for_things_too(connect):
    client = connect()
    client.ask("events")
    client.send(b'{"id":1,"do":"pause"}\n')
    assert {client.line().get("event"), client.line().get("event")} == {"paused", None}


def test_slow_listener_loses_events_and_is_told_how_many(connect, machine):
    client = connect()
    client.ask("events")
    for number in range(3000):
        machine.happen("noise", number=number, padding="x" * 1000)
    connect().ask("status")  # it has lost some by now
    told = lost = 0
    while told < 3000:  # while they are read here, it may lose more of them
        event = client.line()
        if "number" in event:
            assert event["number"] == told
            told += 1
        else:
            lost += event["count"]
            told += event["count"]
    assert lost
    machine.happen("noise", number=-1)
    assert client.line()["number"] == -1


def test_listener_that_stopped_sending_still_hears(connect, machine):
    client = connect()
    client.ask("events")
    client.socket.shutdown(socket.SHUT_WR)
    connect().ask("pause")
    assert client.line()["event"] == "paused"


# The end


def test_everybody_hears_how_the_guest_ended_before_the_connection_ends(machine):
    with control.serve(machine, "guest") as served:
        client = Client(os.path.join(served.folder, "control.sock"))
        client.line()
        client.ask("events")
        machine.end(Outcome(PANIC, "the guest panicked: x"))
    event = client.line()
    event.pop("time")
    assert event == {
        "event": "ended",
        "reason": "panic",
        "exit_code": 255,
        "message": "the guest panicked: x",
    }
    assert client.rest() == b""
    client.close()


def test_who_sees_the_connection_end_can_have_the_name(machine):
    served = control.serve(machine, "guest")
    client = Client(os.path.join(served.folder, "control.sock"))
    client.line()
    closing = Background(served.close)
    assert client.rest() == b""
    runfolder.claim("guest").release()
    closing.result()
    client.close()


def test_client_that_does_not_read_holds_up_the_end_for_a_moment_only(machine, monkeypatch):
    monkeypatch.setattr(server_module, "_FAREWELL", 0.05)
    served = control.serve(machine, "guest")
    machine.prints(b"x" * (256 << 10))
    stuck = Client(os.path.join(served.folder, "console.sock"))
    stuck.read_until(b"x")
    in_time(served.close)
    served.close()
    stuck.close()


def test_nothing_is_left_of_a_server(machine, run_folder):
    before = sorted(os.listdir("/proc/self/fd"))
    with control.serve(machine, "guest") as served:
        clients = [Client(os.path.join(served.folder, "control.sock")) for _ in range(3)]
        clients[0].line()
    for client in clients:
        client.close()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert os.listdir(run_folder) == [".lock"]
    machine.prints(b"after")
    machine.happen("paused")


def test_request_under_way_at_the_end_is_answered_or_dropped_but_not_waited_for(machine, monkeypatch):
    monkeypatch.setattr(server_module, "_FAREWELL", 0.05)
    machine.gate.clear()
    served = control.serve(machine, "guest")
    client = Client(os.path.join(served.folder, "control.sock"))
    client.line()
    client.send(b'{"do":"pause"}\n')
    happens(machine.pausing)
    in_time(served.close)
    machine.gate.set()
    client.close()


def test_sockets_that_cannot_be_made_leave_nothing(machine, monkeypatch, run_folder):
    def refuse(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyvmm.control.sockets._listen", refuse)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(Exception, match="No space left on device"):
        control.serve(machine, "guest")
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert runfolder.running() == []


def test_host_that_gives_no_thread_to_serve_with_leaves_nothing(machine, monkeypatch):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    before = sorted(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr("pyvmm.eventloop.start_thread", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            control.serve(machine, "guest")
    assert sorted(os.listdir("/proc/self/fd")) == before
    with control.serve(machine, "guest"):
        pass


# Stopping


@pytest.mark.parametrize(
    ("obeys", "how", "calls"),
    [
        ("power-key", "power-key", ["power_button"]),
        ("sysrq", "sysrq", ["power_button", ("sysrq", "s"), ("sysrq", "u"), ("sysrq", "o")]),
        ("nothing", "forced", ["power_button", ("sysrq", "s"), ("sysrq", "u"), ("sysrq", "o")]),
        ("no-power-key", "forced", ["power_button", ("sysrq", "s"), ("sysrq", "u"), ("sysrq", "o")]),
    ],
)  # fmt: skip
def test_stop_asks_ever_less_gently_and_says_what_it_took(connect, machine, obeys, how, calls):
    machine.obeys = obeys
    result = connect().ask("stop", grace=0.01)["result"]
    assert result["how"] == how
    assert machine.calls == calls
    assert result["reason"] == ("killed" if how == "forced" else "poweroff")


def test_stop_presses_the_power_key_until_somebody_heeds_it(connect, machine, monkeypatch):
    monkeypatch.setattr(stopping, "_PRESSES", 0.01)
    press, machine.obeys = machine.power_button, "nothing"

    def press_and_listen():
        press()
        if machine.calls == ["power_button"] * 3:
            machine.obeys = "power-key"

    machine.power_button = press_and_listen
    assert connect().ask("stop", grace=1000)["result"]["how"] == "power-key"
    assert machine.calls == ["power_button"] * 4


def test_stop_leaves_a_guest_its_time_when_the_power_key_is_gone(connect, machine, monkeypatch):
    monkeypatch.setattr(stopping, "_PRESSES", 0.01)
    machine.obeys = "nothing"
    press, presses = machine.power_button, []

    def press_until_the_driver_went():
        presses.append(press())
        if len(presses) > 2:
            if len(presses) == 5:
                machine.end(Outcome(POWEROFF, "the guest powered off"))
            raise MachineError("The guest does not watch its power key.")

    machine.power_button = press_until_the_driver_went
    assert connect().ask("stop", grace=1000)["result"]["how"] == "power-key"
    assert len(presses) == 5


def test_stop_wakes_a_paused_guest_first(connect, machine):
    client = connect()
    client.ask("pause")
    assert client.ask("stop")["result"]["how"] == "power-key"
    assert machine.calls == ["pause", "resume", "power_button"]


def test_guest_that_ends_before_it_can_be_resumed_has_ended_otherwise(connect, machine):
    def resume():
        machine.end(Outcome(PANIC, "the guest panicked"))
        raise MachineError("The guest has ended.")

    client = connect()
    client.ask("pause")
    machine.resume = resume
    assert client.ask("stop")["result"] == {
        "how": "otherwise",
        "reason": "panic",
        "exit_code": 255,
        "message": "the guest panicked",
    }


@pytest.mark.parametrize(
    ("end", "how"),
    [(Outcome(POWEROFF, "the guest powered off"), "sysrq"), (Outcome(PANIC, "it panicked"), "otherwise")],
)
def test_guest_that_ends_just_before_it_is_forced_was_not_forced(connect, machine, end, how):
    machine.obeys = "nothing"
    by_force = machine.end
    machine.end = lambda forced: (by_force(end), by_force(forced))
    result = connect().ask("stop", grace=0.01)["result"]
    assert (result["how"], result["message"]) == (how, end.message)


@pytest.mark.parametrize("kind", ["control.sock", "console.sock"])
def test_host_that_has_nothing_left_for_a_client_drops_it_alone(server, connect, monkeypatch, kind):
    served = connect()

    def watch(self, fd, callback, events=0):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(EventLoop, "watch", watch)
        dropped = Client(os.path.join(server.folder, kind))
        assert dropped.rest() == b""
        dropped.close()
    assert served.ask("status")["ok"]
    assert connect().ask("status")["ok"]


def test_grace_may_be_longer_than_a_float_can_say(connect):
    assert connect().ask("stop", grace=10**400)["result"]["how"] == "power-key"


def test_kill_ends_the_guest_while_a_stop_waits(connect, machine):
    machine.obeys = "nothing"
    waiting, impatient = connect(), connect()
    waiting.send(b'{"id":1,"do":"stop","grace":1000}\n')
    assert impatient.ask("kill")["ok"]
    answer = waiting.line()["result"]
    assert (answer["how"], answer["reason"]) == ("otherwise", "killed")
    assert machine.ended.exit_code == 137


def test_stop_gives_up_when_the_guest_is_no_longer_served(machine, monkeypatch):
    monkeypatch.setattr(server_module, "_FAREWELL", 30)
    machine.obeys = "nothing"
    served = control.serve(machine, "guest")
    client = Client(os.path.join(served.folder, "control.sock"))
    client.line()
    client.send(b'{"id":1,"do":"stop","grace":1000}\n')
    eventually(lambda: "power_button" in machine.calls)
    in_time(served.close)
    assert client.line()["error"] == "This guest can no longer be controlled here."
    assert machine.ended is None
    client.close()


def test_every_request_is_documented():
    from pathlib import Path

    page = (Path(__file__).parents[3] / "docs/reference/control-protocol.md").read_text()
    for name, kind in requests.KINDS.items():
        assert f"`{name}`" in page, name
        for parameter in (*kind.required, *kind.optional):
            assert f"`{parameter}`" in page, parameter
