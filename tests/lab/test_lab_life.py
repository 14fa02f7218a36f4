# SPDX-License-Identifier: Apache-2.0
"""The life of a real lab host: starts, crashes, idleness, the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyvmm.lab import host, qemu, store

pytestmark = pytest.mark.lab

WARM_LIMIT = 5.0  # seconds, with a saved state
COLD_LIMIT = 25.0  # seconds, from power-on

IRQCHIP = """
import ctypes, os
fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
print(ctypes.CDLL(None).ioctl(fd, 0xAE03, 0))
"""


@pytest.fixture
def stopped(own_runtime):
    """No host runs, before and after."""
    host.stop_all()
    yield
    host.stop_all()


def gone(pid: int) -> bool:
    return qemu.start_time(pid) == 0


def wait_gone(pid: int, limit: float) -> None:
    end = time.monotonic() + limit
    while not gone(pid):
        assert time.monotonic() < end, "the host is still there"
        time.sleep(0.1)


def master() -> int:
    """The process that holds the connection; it carries the socket's path in its title."""
    title = f"{store.runtime_dir() / 'aia.ssh'} [mux]".encode()
    found = [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if title in path.read_bytes()]
    return int(found[0])


def forget_saved_states(kind: str) -> None:
    for path in (store.cache_dir() / "host").glob(f"*/state-{kind}-*"):
        path.unlink()


@pytest.mark.parametrize(("kind", "irqchip"), [("aia", "1"), ("plic", "0")])
def test_host_starts_in_time_with_the_kvm_of_its_flavour(stopped, kind, irqchip):
    lab = host.Lab(kind)
    lab.build()
    forget_saved_states(kind)
    for warm, limit in ((False, COLD_LIMIT), (True, WARM_LIMIT)):
        begin = time.monotonic()
        lab.start()
        took = time.monotonic() - begin
        done = lab.popen(["python3", "-c", IRQCHIP], stdout=subprocess.PIPE, text=True).communicate()[0]
        assert (done.strip(), lab.status()["warm"]) == (irqchip, warm)
        assert took < limit
        lab.stop()


def test_clock_is_right_after_a_warm_start(stopped):
    lab = host.Lab()
    lab.start()
    lab.stop()
    lab.start()
    there = lab.popen(["date", "+%s"], stdout=subprocess.PIPE, text=True).communicate()[0]
    assert abs(int(there) - time.time()) < 5


def test_stop_leaves_no_process_and_no_state(stopped):
    lab = host.Lab()
    lab.start()
    pid = lab.status()["pid"]
    assert lab.stop()
    assert gone(pid)
    assert not lab.status()["running"]
    assert not lab.stop()


def test_concurrent_starts_give_one_host(stopped):
    script = "from pyvmm.lab.host import Lab; lab = Lab(); lab.start(); print(lab.status()['pid'])"
    starts = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert len({start.communicate()[0] for start in starts}) == 1
    assert [start.returncode for start in starts] == [0, 0, 0]


def test_host_that_crashed_is_replaced(stopped):
    lab = host.Lab()
    lab.start()
    pid = lab.status()["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid, 10)
    assert not lab.status()["running"]
    assert lab.run(["true"], tty=False) == 0
    assert lab.status()["pid"] != pid


def test_connection_that_was_killed_is_made_again(stopped):
    lab = host.Lab()
    lab.start()
    before = lab.status()
    os.kill(master(), signal.SIGKILL)
    assert lab.run(["true"], tty=False) == 0
    assert lab.status()["pid"] == before["pid"]


def test_damaged_saved_state_leads_to_a_fresh_boot(stopped):
    lab = host.Lab()
    lab.start()
    lab.stop()
    for path in (store.cache_dir() / "host").glob("*/state-aia-*"):
        os.truncate(path, 100_000)
    said: list[str] = []
    lab.start(said.append)
    assert not lab.status()["warm"]
    assert "the saved state of the lab host does not work; booting it anew" in said


def test_client_killed_during_a_start_does_no_harm(stopped):
    script = "from pyvmm.lab.host import Lab; Lab().start()"
    client = subprocess.Popen([sys.executable, "-c", script])
    pidfile = store.runtime_dir() / "aia.pid"
    limit = time.monotonic() + 20
    while not pidfile.exists():
        assert time.monotonic() < limit
    client.kill()
    client.wait()
    assert host.Lab().run(["true"], tty=False) == 0


def test_host_without_a_connection_powers_off(stopped, monkeypatch):
    monkeypatch.setattr(host, "UNCONNECTED", 4)
    lab = host.Lab(idle=1)
    lab.start()
    pid = lab.status()["pid"]
    wait_gone(pid, 40)
    assert not lab.status()["running"]
