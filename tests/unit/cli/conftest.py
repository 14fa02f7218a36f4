# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from fakes.threads import PATIENCE, read

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
