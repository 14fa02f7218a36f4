# SPDX-License-Identifier: Apache-2.0
import os
import re
import socket
from pathlib import Path

import pytest
from fakes.controlled import eventually
from fakes.threads import Background, happens

from pyvmm.control.client import Control, ControlError, ControlGone
from pyvmm.outcome import POWEROFF, Outcome


@pytest.fixture
def control(server):
    with Control(os.path.join(server.folder, "control.sock")) as control:
        yield control


@pytest.fixture
def imposter(run_folder):
    """Something else at a socket; it says ``words`` to its only client."""
    listener = socket.socket(socket.AF_UNIX)
    os.makedirs(run_folder, 0o700)
    path = os.path.join(run_folder, "x.sock")
    listener.bind(path)
    listener.listen()
    clients = []

    def say(words):
        def serve():
            clients.append(listener.accept()[0])
            clients[0].sendall(words)

        Background(serve)
        return path

    yield say
    listener.close()
    for client in clients:
        client.close()


def test_result_of_a_request_is_returned(control):
    assert control.greeting["name"] == "guest"
    assert control.request("status")["cpus"] == 2
    assert control.request("pause") == {}
    assert control.request("status")["state"] == "paused"


def test_refusal_is_raised_as_its_sentence(control):
    with pytest.raises(ControlError, match="There is no CPU 9: this guest has 2"):
        control.request("registers", cpu=9)


def test_events_are_given_in_order_and_end_with_the_server(control, machine, server):
    events = control.events()
    reading = Background(lambda: next(events))
    with Control(os.path.join(server.folder, "control.sock")) as other:
        eventually(lambda: any(session._listening for session in server._sessions))
        other.request("pause")
        other.request("resume")
    assert reading.result()["event"] == "paused"
    assert next(events)["event"] == "resumed"
    server.close()
    assert list(events) == []


def test_events_between_answers_are_kept(control, machine):
    control.request("events")
    control.request("pause")
    control.request("resume")
    events = control.more_events(30)
    assert [next(events)["event"] for _ in range(2)] == ["paused", "resumed"]


def test_guest_that_has_gone_is_said(control, server):
    server.close()
    with pytest.raises(ControlGone, match="The guest's pyvmm has ended"):
        control.request("status")
    assert control.wait_closed(1)


def test_guest_that_does_not_answer_is_said(control, machine):
    machine.gate.clear()
    with pytest.raises(ControlGone, match="does not answer"):
        control.request("pause", patience=0.01)
    assert not control.wait_closed(0.01)
    machine.gate.set()
    happens(machine.pausing)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "What answers there is not pyvmm."),
        (b"[1]\n", "What answers there is not pyvmm."),
        (b'{"pyvmm":"9","protocol":2}\n', "That guest's pyvmm speaks protocol 2, this one 1."),
        (b'{"ok":false,"error":"Too many."}\n', "Too many."),
    ],
)
def test_server_of_another_kind_is_refused(imposter, words, sentence):
    with pytest.raises(ControlError) as refused:
        Control(imposter(words))
    assert str(refused.value) == sentence


def test_silent_server_is_not_waited_for_for_ever(imposter):
    with pytest.raises(ControlGone, match="does not answer"):
        Control(imposter(b""), patience=0.01)


def test_socket_that_nobody_serves_is_said(run_folder):
    with pytest.raises(ControlGone, match="Nobody answers at /nonexistent: No such file or directory"):
        Control("/nonexistent")


# The page's examples


@pytest.fixture
def examples():
    page = Path(__file__).parents[3] / "docs/reference/control-protocol.md"
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


def test_example_without_pyvmm_works(examples, server, capsys):
    exec(examples[0].replace("/tmp/pyvmm-run-1000/vm1", server.folder), {})
    assert "'name': 'guest'" in capsys.readouterr().out


def test_example_with_pyvmm_works(examples, server, machine, capsys):
    running = Background(lambda: exec(examples[1].replace('"vm1"', '"guest"'), {}))
    eventually(lambda: any(session._listening for session in server._sessions))
    machine.end(Outcome(POWEROFF, "the guest powered off"))
    server.close()
    running.result()
    out = capsys.readouterr().out
    assert out.startswith("0xffffffff80000000\n")
    assert "'ended'" in out
    assert machine.calls == ["pause", "resume"]
