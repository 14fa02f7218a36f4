# SPDX-License-Identifier: Apache-2.0
"""What a guest in the lab listens on, as the words of its command line say it."""

import socket

import pytest

from pyvmm.cli.reach import Reach
from pyvmm.errors import ConfigError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_published_ports_lead_to_the_same_ports_of_the_lab():
    words = ["run", "--network=user,publish=2222:22+0.0.0.0/8080:80+::1/81", "--device=net,publish=9"]
    reach = Reach(words)
    assert reach.words == words
    assert reach.pairs == [
        ("127.0.0.1:2222", "127.0.0.1:2222"),
        ("0.0.0.0:8080", "127.0.0.1:8080"),
        ("[::1]:81", "[::1]:81"),
        ("127.0.0.1:9", "127.0.0.1:9"),
    ]


def test_udp_is_out_of_reach():
    reach = Reach(["run", "--network=user,publish=53/udp+54"])
    assert (reach.pairs, reach.unreachable) == ([("127.0.0.1:54", "127.0.0.1:54")], ["53"])


def test_sockets_of_ports_have_names_of_their_own_in_the_lab(folder):
    reach = Reach(["run", "--port=a,unix=a.sock", f"--device=console,name=b,unix={folder}/b.sock", "--rng"])
    (here_a, there_a), (here_b, there_b) = reach.pairs
    assert (here_a, here_b) == (f"{folder}/a.sock", f"{folder}/b.sock")
    assert there_a != there_b
    assert reach.words == [
        "run",
        f"--port=a,unix={there_a}",
        f"--device=console,name=b,unix={there_b}",
        "--rng",
    ]


def test_sockets_of_several_guests_of_one_program_have_different_names_in_the_lab(folder):
    there = {Reach([f"--port=a,unix={name}.sock"]).pairs[0][1] for name in ("one", "two")}
    assert len(there) == 2


def test_words_of_the_guests_own_command_are_left_alone(folder):
    words = ["exec", "--port=log,file=log", "--", "prog", "--port=a,unix=a.sock"]
    assert Reach(words).words == words


def test_what_is_taken_on_this_machine_is_refused(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        reach = Reach([f"--network=user,publish={port}:22"])
        with pytest.raises(ConfigError, match=rf"Port {port} cannot be published at 127\.0\.0\.1: .*another"):
            reach.check()
    reach.check()
    (folder / "file").write_text("data")
    with pytest.raises(ConfigError, match="is not a socket"):
        Reach([f"--port=a,unix={folder}/file"]).check()
    assert (folder / "file").read_text() == "data"


def test_what_is_free_stays_as_it_is(folder):
    Reach(["--port=a,unix=a.sock"]).check()
    assert list(folder.iterdir()) == []
