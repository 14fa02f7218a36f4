# SPDX-License-Identifier: Apache-2.0
"""pytest inside pytest, with guests that are scripts (fakes/vmm.py)."""

import json
import os
import tempfile
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
SHELL = "say Linux version 6.99 (fake)\nshell\n"


class Suite:
    """A folder with tests, and a way to run them. ``log`` is what the guests said of their lives.

    ``runtime`` is where sockets and leases go, of this suite alone: others run at the same time.
    """

    def __init__(self, pytester, monkeypatch, runtime):
        self.pytester = pytester
        self.path = pytester.path
        self.runtime = runtime
        self.log = self.path / "guests"
        environment = {
            "PYVMM_TEST_CLI": "fakes.vmm",
            "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
            "FAKE_LOG": str(self.log),
            "VMM_HOST": "local",
            "VMM_TIMEOUT_SCALE": "1",
            "XDG_RUNTIME_DIR": str(runtime),
            "PYTEST_ADDOPTS": "-p no:cacheprovider -p no:hypothesispytest",  # which takes a second to import
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        self.kernel(SHELL)

    def kernel(self, script, name="Image"):
        """A kernel that does what ``script`` says."""
        path = self.path / name
        path.write_text(script)
        return path

    def run(self, test, *options, kernel=True):
        """Run one file of tests, in a process of its own: plugins are loaded once a process."""
        self.pytester.makepyfile(test)
        given = ["--vmm-kernel=Image"] if kernel else []
        return self.pytester.runpytest_subprocess(*given, *options)

    def lives(self, what):
        """The options of the guests that began, or of those that ended by themselves."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        words = [line.split(" ", 3) for line in lines]
        return [json.loads(options) for kind, _, _, options in words if kind == what]

    def processes(self):
        """Those that were started here and still run: guests, workers, whatever looks after them."""
        mark = f"FAKE_LOG={self.log}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
            except OSError:  # it has ended meanwhile
                pass
        return found

    def leftovers(self):
        """What there is in the folder for sockets and leases, but for the file that holds these together."""
        found = {str(path.relative_to(self.runtime)) for path in self.runtime.rglob("*")}
        return sorted(found - {"pyvmm", "pyvmm/leases-local", "pyvmm/leases-local/lock"})

    def artifacts(self, name):
        """The files of this name that are kept."""
        return sorted(self.path.glob(f".pyvmm/*/*/{name}"))


@pytest.fixture
def suite(pytester, monkeypatch):
    """A suite of tests that run guests."""
    # Its name is short, as paths of sockets must be.
    with tempfile.TemporaryDirectory(prefix="pyvmm-t", dir="/tmp") as runtime:
        yield Suite(pytester, monkeypatch, Path(runtime))
