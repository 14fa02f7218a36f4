# SPDX-License-Identifier: Apache-2.0
"""Guests in the lab, as far as that can be seen from outside it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.testing import place
from pyvmm.testing.place import Here, InLab


class FakeLab:
    def __init__(self, flavour):
        self.flavour = flavour
        self.calls = []
        self.forwarded = []
        self.sessions = []

    def start(self):
        self.calls.append("start")

    def popen(self, argv, **how):
        self.calls.append(argv)
        self.sessions.append(how.get("start_new_session", False))
        return subprocess.Popen([sys.executable, "-c", "print('output')"], **how)

    def forward(self, here, there):
        if here.startswith("/"):
            Path(here).touch()
        self.forwarded.append((os.path.basename(here), there))

    def cancel_command(self, here, there):
        return ["touch", f"{self.folder}/cancelled {os.path.basename(here)}"]


@pytest.fixture
def lab(monkeypatch):
    monkeypatch.setattr(place, "Lab", FakeLab)
    return InLab("plic")


def test_program_in_the_lab_is_its_own_pyvmm(lab):
    assert lab.run(["pyvmm", "doctor"]) == (0, "output\n")
    assert lab._lab.calls == [["python3", "-m", "pyvmm", "doctor"]]
    assert lab.name == "lab:plic"


def test_guest_in_the_lab_is_kept_from_the_terminals_signals(lab):
    process = lab.popen(["run", "--name=x"], stdout=subprocess.DEVNULL)
    process.wait()
    assert lab._lab.calls == [["python3", "-m", "pyvmm", "run", "--name=x"]]
    assert lab._lab.sessions == [True]


def test_what_a_guest_listens_on_is_forwarded_and_given_back(lab, tmp_path, monkeypatch):
    lab._lab.folder = tmp_path
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    publish = f"--network=user,publish={port}:22"
    words = lab.prepare("x", tmp_path, ["run", publish, "--port=p,unix=port.sock"])
    there = words[-1].removeprefix("--port=p,unix=")
    assert words == ["run", publish, f"--port=p,unix={there}"]
    assert lab._lab.forwarded == [
        ("control.sock", "/run/pyvmm/x/control.sock"),
        ("agent.sock", "/run/pyvmm/x/agent.sock"),
        (f"127.0.0.1:{port}", f"127.0.0.1:{port}"),
        ("port.sock", there),
    ]
    lab.release("x", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"cancelled 127.0.0.1:{port}",
        "cancelled agent.sock",
        "cancelled control.sock",
        "cancelled port.sock",
    ]
    lab.release("x", tmp_path)


@pytest.mark.parametrize(
    ("where", "name"), [("local", "local"), ("lab", "lab:aia"), ("lab:plic", "lab:plic")]
)
def test_place_is_chosen_by_the_option(lab, tmp_path, where, name):
    assert place.choose(where, tmp_path).name == name


def test_place_is_this_host_only_when_it_is_riscv(lab, tmp_path, monkeypatch):
    class Uname:
        machine = "riscv64"

    monkeypatch.setattr(place.os, "uname", Uname)
    assert isinstance(place.choose("auto", tmp_path), Here)
    Uname.machine = "x86_64"
    assert isinstance(place.choose("auto", tmp_path), InLab)
