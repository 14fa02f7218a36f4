# SPDX-License-Identifier: Apache-2.0
"""What ``pyvmm run`` does on a machine whose guests run in the lab, with a lab that is none."""

import contextlib
import os
import signal

import pytest

from pyvmm.cli import in_lab
from pyvmm.config import MachineConfig
from pyvmm.errors import ConfigError


class FakeLab:
    """Its command ends with ``status``, or sends us ``signal`` and waits for what comes of that."""

    calls: list[object]
    signal: int | None = None
    status = 0

    def __init__(self, flavour):
        self.calls.append(flavour)

    def start(self, progress):
        self.calls.append("start")

    @contextlib.contextmanager
    def forwarding(self, pairs):
        self.calls.append(pairs)
        try:
            yield
        finally:
            if self.signal is not None:
                os.kill(os.getpid(), signal.SIGHUP)  # terminals, and systemd, send two
            self.calls.append("undone")

    def run(self, command, *, tty, progress):
        self.calls.append(command[3:])
        if self.signal is not None:
            os.kill(os.getpid(), self.signal)
            signal.pause()
        return self.status


@pytest.fixture
def lab(monkeypatch):
    fake = type("Lab", (FakeLab,), {"calls": []})
    monkeypatch.setattr("pyvmm.lab.host.Lab", fake)
    return fake


@pytest.fixture
def run(image):
    def start(*words, where="lab", mem="16M"):
        config = MachineConfig(kernel=image, mem=mem)
        return in_lab.run_in_lab(["run", *words], config, where, quiet=True)

    return start


def test_command_runs_in_the_flavour_asked_for_and_its_status_is_ours(lab, run):
    lab.status = 7
    assert run("--rng", where="lab:plic") == 7
    assert lab.calls == ["plic", "start", [], ["run", "--rng"], "undone"]


def test_guest_that_no_lab_host_has_room_for_starts_none(lab, run):
    with pytest.raises(ConfigError, match=r"has 4G in all, and --mem asks for 1000G; ask for less\."):
        run(mem="1000G")
    assert lab.calls == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_undoes_what_leads_to_the_lab(lab, run, number):
    before = signal.getsignal(number)
    lab.signal = number
    assert run() == 128 + number
    assert lab.calls[-1] == "undone"
    assert signal.getsignal(number) is before
