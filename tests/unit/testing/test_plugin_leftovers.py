# SPDX-License-Identifier: Apache-2.0
"""Whatever ends pytest, nothing of its guests survives; and several pytest processes do not clash."""

import os
import signal
import subprocess
import sys
import time

import pytest

PATIENCE = 30
HANGS = """
def test_it(vm_booted, vm_factory):
    second = vm_factory()
    second.start()
    print("both run", flush=True)
    vm_booted.wait(timeout=600)
"""


@pytest.fixture
def hanging(suite):
    """A pytest whose test waits for two guests, in a session of its own."""
    suite.pytester.makepyfile(HANGS)
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-s", "--vmm-kernel=Image"],
        cwd=suite.path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if "both run" in line:
            break
    assert suite.leftovers()
    yield process
    process.kill()
    process.communicate()


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def eventually(condition):
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_nothing_survives_kill_9(suite, hanging):
    hanging.kill()
    hanging.wait()
    eventually(lambda: all(map(gone, suite.pids())))
    eventually(lambda: not suite.leftovers())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_survives_a_signal(suite, hanging, number):
    os.killpg(hanging.pid, number)
    hanging.wait()
    eventually(lambda: all(map(gone, suite.pids())))
    eventually(lambda: not suite.leftovers())


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
