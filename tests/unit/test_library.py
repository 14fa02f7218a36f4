# SPDX-License-Identifier: Apache-2.0
"""pyvmm as a library: what ``import pyvmm`` gives, and machines in programs of other people."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fakes.guests import echo, idle, prints
from fakes.kernel import FakeKernel, call, shutdown
from fakes.threads import Background, happens, in_time

import pyvmm

ROOT = Path(__file__).resolve().parents[2]


def test_import_loads_nothing_else():
    code = "import sys; before = set(sys.modules); import pyvmm; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(ROOT)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) <= {"__future__", "pyvmm"}


@pytest.mark.parametrize("name", pyvmm.__all__)
def test_every_public_name_is_there_and_in_the_reference(name):
    assert getattr(pyvmm, name)
    if name != "__version__":
        assert f"`{name}" in (ROOT / "docs/reference/library.md").read_text()


def test_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'pyvmm' has no attribute 'Machin'"):
        _ = pyvmm.Machin


def test_dir_shows_the_public_names():
    assert dir(pyvmm) == sorted(pyvmm.__all__)


def test_machine_runs_in_a_with_statement_without_any_descriptors(image):
    kernel = FakeKernel([*prints(b"hello\n"), shutdown()])
    config = pyvmm.MachineConfig(kernel=image, mem="16M", console="serial")
    with pyvmm.Machine(config, kernel=kernel) as vm:
        vm.start()
        assert in_time(vm.wait).reason == "poweroff"
    assert kernel.open_fds == []


def test_two_machines_run_beside_each_other(run):
    printed = threading.Event()
    first = run([*prints(b"ready\n"), echo])
    second = run([*prints(b"second\n"), call(lambda _: printed.set()), idle], timeout="20s")
    first.start()
    second.start()
    happens(printed)
    second.machine.end(pyvmm.Outcome("quit", "enough of it"))
    assert second().reason == "quit"
    os.write(first.keys, b"q")
    assert first().reason == "poweroff"
    assert (first.output[:6], second.output) == (b"ready\n", b"second\n")


def test_machine_lives_on_threads_other_than_the_main_one(run):
    def whole_life():
        assert threading.current_thread() is not threading.main_thread()
        return run([*prints(b"hello\n"), shutdown()])()

    assert Background(whole_life).result().reason == "poweroff"


def test_signals_of_the_program_are_left_alone(run):
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    it = run([*prints(b"hello\n"), idle])
    it.start()
    it.machine.end(pyvmm.Outcome("quit", "enough of it"))
    it()
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == blocked
