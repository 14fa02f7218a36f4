# SPDX-License-Identifier: Apache-2.0
import os
import re
import socket

import pytest
from fakes.controlled import Client, eventually
from fakes.threads import Background


@pytest.fixture
def watch(connect):
    return lambda: connect("console.sock")


def test_client_gets_what_was_kept_and_then_what_follows(watch, machine):
    machine.prints(b"Linux version 7\r\n")
    client = watch()
    assert client.read_until(b"\n") == b"Linux version 7\r"
    machine.prints(b"login: \xff\x1b[2J")
    assert client.read_until(b"[2J") == b"login: \xff\x1b"


def test_every_client_sees_everything(watch, machine):
    clients = [watch() for _ in range(5)]
    machine.prints(b"one\n")
    assert [client.read_until(b"\n") for client in clients] == [b"one"] * 5


def test_what_clients_type_reaches_the_guest_in_order(watch, machine):
    client = watch()
    client.send(b"ls\r")
    machine.prints(b"$ ")
    client.read_until(b"$ ")
    client.send(b"x" * 200_000)
    client.socket.shutdown(socket.SHUT_WR)
    other = watch()
    other.send(b"!")
    eventually(lambda: sum(map(len, machine.typed)) == 200_004)
    assert b"".join(machine.typed).replace(b"!", b"") == b"ls\r" + b"x" * 200_000


def test_guest_that_does_not_read_leaves_what_is_typed_with_its_sender(watch, machine, connect):
    machine.reads_input = False
    client = watch()
    typing = Background(lambda: client.send(b"x" * (4 << 20)))
    eventually(lambda: machine.untaken)
    connect().ask("status")
    assert sum(map(len, machine.typed)) <= 64 << 10
    machine.reads_input = True
    machine.untaken.pop()()
    typing.result()


@pytest.mark.parametrize(("clients", "piece"), [(10, 64 << 10), (300, 1)])
def test_clients_that_type_and_go_leave_a_bounded_part_with_a_guest_that_does_not_read(
    watch, server, machine, connect, clients, piece
):
    machine.reads_input = False
    machine.prints(b"hung")
    control = connect()
    for _ in range(clients):
        client = Client(os.path.join(server.folder, "console.sock"))
        client.send(b"x" * piece)
        for _ in range(2):  # the second answer comes after what was there before the first one
            control.ask("status")
        client.close()
    assert sum(map(len, machine.typed)) <= 128 << 10
    assert len(machine.typed) <= 128
    later = watch()
    later.read_until(b"hung")
    later.send(b"!")
    machine.reads_input = True
    while machine.untaken:
        machine.untaken.pop()()
    eventually(lambda: b"!" in machine.typed)


def test_client_that_does_not_read_loses_output_and_is_told_where(watch, machine, connect):
    slow, quick = watch(), watch()
    machine.prints(b"start\n")
    slow.read_until(b"start\n")
    line = b"%099d\n"
    for number in range(40_000):
        machine.prints(line % number)
        if number % 1000 == 999:
            quick.read_until(line % number)
    # What waits for the slow one is sent before anything that comes now.
    while b"too slowly]" not in slow._received:
        slow._received += slow.socket.recv(1 << 16)
        assert len(slow._received) < 4_000_000
    lost = int(re.search(rb"\r\n\[pyvmm: (\d+) bytes are missing here", slow._received)[1])
    before, _, _ = slow._received.partition(b"\r\n[pyvmm")
    assert len(before) + lost == 4_000_000
    machine.prints(b"end\n")
    slow.read_until(b"end\n")


def test_client_that_stopped_typing_still_watches(watch, machine):
    client = watch()
    client.socket.shutdown(socket.SHUT_WR)
    machine.prints(b"more\n")
    assert client.read_until(b"\n") == b"more"


def test_too_many_clients_are_told_so(watch, server, machine):
    clients = [watch() for _ in range(16)]
    machine.prints(b"x")
    for client in clients:
        client.read_until(b"x")
    refused = Client(os.path.join(server.folder, "console.sock"))
    assert refused.rest() == b"pyvmm: too many clients watch this console; end one of them\r\n"
    refused.close()


def test_client_that_goes_makes_room(watch, server, machine):
    path = os.path.join(server.folder, "console.sock")
    for _ in range(1000):
        Client(path).close()
    machine.prints(b"x")
    assert watch().read_until(b"x") == b""
    assert len(machine.writer._observers) <= 16


def test_last_words_reach_every_client(watch, server, machine):
    client = watch()
    client.socket.settimeout(30)
    machine.prints(b"reboot: Power down\n")
    server.close()
    assert client.rest() == b"reboot: Power down\n"
