# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from fakes.controlled import FakeMachine
from fakes.threads import PATIENCE, read

from pyvmm import cli, control

TESTS = Path(__file__).resolve().parents[2]
PATHS = os.pathsep.join((str(TESTS), str(TESTS.parent)))


@pytest.fixture(autouse=True)
def run_folder(monkeypatch):
    """A folder of running guests of the test's own, with a short name: it holds sockets."""
    with tempfile.TemporaryDirectory(prefix="pyvmm-", dir="/tmp") as folder:
        monkeypatch.setenv("PYVMM_RUN_DIR", os.path.join(folder, "run"))
        yield os.path.join(folder, "run")


class Command:
    """A process that finds pyvmm and the fakes."""

    def __init__(self, words, *, env=None, **options):
        self.process = subprocess.Popen(
            words,
            env={**os.environ, "PYTHONPATH": PATHS, **(env or {})},
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "bufsize": 0,
                **options,
            },
        )

    def send(self, number):
        self.process.send_signal(number)

    def wait_for(self, text):
        """Read the console's output up to and with ``text``."""
        got = b""
        while not got.endswith(text):
            byte = read(self.process.stdout.fileno(), 1)
            assert byte, f"it ended before it said {text!r}: {self.process.stderr.read()}"
            got += byte

    def end(self, keys=None):
        """(exit code, output not yet read, what it said on stderr), after typing ``keys``."""
        out, err = self.process.communicate(keys, timeout=PATIENCE)
        return self.process.returncode, out, err.decode() if err is not None else ""

    def close(self):
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        self.process.wait()


@pytest.fixture
def command():
    """Starts a program."""
    started = []

    def start(*words, **options):
        started.append(Command(words, **options))
        return started[-1]

    yield start
    for it in started:
        it.close()


@pytest.fixture
def pyvmm(command, image):
    """Starts ``pyvmm run`` with a guest of ``fakes.command``."""

    def start(guest, *words, **options):
        words = ["run", "--host=local", "--mem=16M", "--console=serial", f"--kernel={image}", *words]
        return command(sys.executable, "-m", "fakes.command", guest, *words, **options)

    return start


# Commands for guests that are fakes


class FakeLab:
    """Lab hosts: what runs in them, and what they were told to run."""

    def __init__(self, flavour):
        self.flavour = flavour

    def status(self):
        return {"running": self.flavour in self.running}

    def run(self, argv):
        assert argv[:3] == ["python3", "-m", "pyvmm"]
        self.commands.append((self.flavour, argv[3:]))
        return self.code

    def popen(self, argv, **how):
        self.commands.append((self.flavour, argv[3:]))
        found = [{"name": name, "state": "running", "pid": 5} for name in self.running[self.flavour]]
        return subprocess.Popen([sys.executable, "-c", f"print({json.dumps(found)!r})"], **how)


@pytest.fixture
def lab(monkeypatch):
    """The lab hosts, of which none runs."""
    monkeypatch.setattr("pyvmm.lab.host.Lab", FakeLab)
    FakeLab.running, FakeLab.commands, FakeLab.code = {}, [], 0
    return FakeLab


@pytest.fixture
def start():
    """Starts guests that are fakes; returns their machines."""
    served, machines = [], []

    def make(name="guest", **options):
        machines.append(FakeMachine(**options))
        served.append(control.serve(machines[-1], name))
        real_end = machines[-1].end

        def end(outcome, server=served[-1]):
            """As in pyvmm run: when the guest has ended, the name is given back."""
            real_end(outcome)
            threading.Thread(target=server.close).start()

        machines[-1].end = end
        return machines[-1]

    yield make
    for server in served:
        server.close()
    for machine in machines:
        machine.close()


@pytest.fixture
def run(lab, capfd):
    """Runs pyvmm, with fakes of lab hosts: (exit code, stdout, stderr)."""

    def pyvmm(*words):
        code = cli.main(list(words))
        return (code, *capfd.readouterr())

    return pyvmm
