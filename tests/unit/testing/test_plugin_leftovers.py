# SPDX-License-Identifier: Apache-2.0
"""Whatever ends pytest, nothing of its guests survives; and several pytest processes do not clash."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyvmm.testing import session as sessions

PATIENCE = 60
HANGS = """
import pytest

def wait(vm_booted, vm_factory):
    second = vm_factory()
    second.start()
    second.guest.put(b"", "/both-run")
    vm_booted.wait(timeout=600)

@pytest.fixture
def hanging(vm_booted, vm_factory):
    wait(vm_booted, vm_factory)
"""
IN_A_TEST = "\ndef test_it(vm_booted, vm_factory): wait(vm_booted, vm_factory)\n"
IN_A_FIXTURE = "\ndef test_it(hanging): pass\n"
IN_WORKERS = """
@pytest.mark.parametrize("number", range(2))
def test_it(vm_booted, vm_factory, number): wait(vm_booted, vm_factory)
"""


@pytest.fixture
def hang(suite):
    """Starts a pytest that waits for its guests, in a session of its own; returns once it does."""
    started = []

    def start(test, *options, waiting=1):
        suite.kernel("stay\n")  # whatever becomes of its console
        suite.pytester.makepyfile(HANGS + test)
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "pytest", "-q", "--vmm-kernel=Image", *options],
                cwd=suite.path,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        )
        eventually(lambda: len(list(suite.runtime.glob("*/*/root/both-run"))) == waiting)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
    for pid in suite.processes():  # of a test that failed
        os.kill(pid, signal.SIGKILL)


def eventually(condition):
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_nothing_survives_kill_9(suite, hang):
    hang(IN_A_TEST).kill()
    eventually(lambda: not suite.processes())
    assert not suite.leftovers()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_survives_a_signal(suite, hang, number):
    os.killpg(hang(IN_A_TEST).pid, number)
    eventually(lambda: not suite.processes())
    assert not suite.leftovers()


def test_nothing_survives_ctrl_c_in_a_fixture(suite, hang):
    os.killpg(hang(IN_A_FIXTURE).pid, signal.SIGINT)
    eventually(lambda: not suite.processes())
    assert not suite.leftovers()


def test_nothing_survives_ctrl_c_of_workers(suite, hang):
    os.killpg(hang(IN_WORKERS, "-n2", waiting=2).pid, signal.SIGINT)
    eventually(lambda: not suite.processes())
    assert not suite.leftovers()


def test_nothing_survives_kill_9_of_a_pytest_with_workers(suite, hang):
    hang(IN_WORKERS, "-n2", waiting=2).kill()
    eventually(lambda: not suite.processes())
    assert not suite.leftovers()


def test_module_whose_guest_does_not_boot_leaves_nothing(suite):
    suite.kernel("say stuck\nend 254 no memory there\n")
    result = suite.run("def test_one(vm_module): pass\ndef test_two(vm_module): pass")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "passed" not in result.parseoutcomes()
    result.stdout.fnmatch_lines(["*GuestHang: *no memory there"])
    assert not suite.processes()
    assert not suite.leftovers()


def test_guardian_of_a_killed_session_undoes_what_leads_to_the_lab(tmp_path):
    guest = tmp_path / "sockets" / "guest"
    guest.mkdir(parents=True)
    (guest / "undo").write_text(f"touch {tmp_path}/undone\n")
    words = ["sh", "-c", sessions._GUARDIAN, "sh", guest.parent, "true", "1"]
    subprocess.run(words, stdin=subprocess.DEVNULL, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["undone"]


def test_failing_fixture_leaves_nothing(suite):
    result = suite.run(
        """
        import pytest

        @pytest.fixture
        def broken(vm_booted):
            raise RuntimeError("broken")

        @pytest.fixture
        def broken_end(vm_booted):
            yield
            raise RuntimeError("broken")

        def test_one(broken): pass
        def test_two(broken_end): pass
        """
    )
    result.assert_outcomes(passed=1, errors=2)
    assert len(suite.lives("end")) == 2
    assert not suite.processes()
    assert not suite.leftovers()


def test_guest_started_on_a_thread_outlives_it(suite):
    result = suite.run(
        """
        import threading

        def test_it(vm, console):
            starter = threading.Thread(target=vm.start)
            starter.start()
            starter.join()
            console.expect("# ")
            console.sendline("echo alive")
            console.expect("alive")
            assert vm.state == "running"
        """
    )
    result.assert_outcomes(passed=1)


def test_workers_of_xdist_do_not_clash(suite):
    result = suite.run(
        """
        import pytest

        @pytest.mark.vmm(vsock="auto")
        @pytest.mark.parametrize("number", range(6))
        def test_it(vm_booted, console, number):
            console.expect("# ")
        """,
        "-n2",
        "--vmm-keep=all",
    )
    result.assert_outcomes(passed=6)
    lives = suite.lives("begin")
    assert {options["name"][:3] for options in lives} == {"gw0", "gw1"}
    assert len({options["name"] for options in lives}) == 6
    assert len(suite.artifacts("console.log")) == 6
    assert len(list((suite.path / ".pyvmm").iterdir())) == 1
    assert not suite.leftovers()


def test_no_more_guests_run_at_once_than_may(suite):
    result = suite.run(
        """
        import pytest

        @pytest.mark.parametrize("number", range(4))
        def test_it(vm_booted, console, number):
            console.expect("# ")
        """,
        "-n2",
        "--vmm-max-parallel=1",
    )
    result.assert_outcomes(passed=4)
    kinds = [line.split()[0] for line in suite.log.read_text().splitlines()]
    assert kinds == ["begin", "end"] * 4


def test_guests_wait_for_each_other_when_memory_is_for_one(suite):
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            most_of_it = int(line.split()[1]) * 6 // 10 // 1024
    result = suite.run(
        f"""
        import pytest

        @pytest.mark.vmm(mem="{most_of_it}M")
        @pytest.mark.parametrize("number", range(4))
        def test_it(vm_booted, console, number):
            console.expect("# ")
        """,
        "-n2",
    )
    result.assert_outcomes(passed=4)
    kinds = [line.split()[0] for line in suite.log.read_text().splitlines()]
    assert kinds == ["begin", "end"] * 4
