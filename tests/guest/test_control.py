# SPDX-License-Identifier: Apache-2.0
"""A real guest under `pyvmm run --name`, controlled by other commands while it runs."""

import json
import os
import subprocess
import sys

import pexpect
import pytest
from booted import PATIENCE

HELD = "held"  # the guest's name


@pytest.fixture
def ask(real_kvm):
    """Runs another pyvmm command: a CompletedProcess with text. Its exit code must be the one expected."""

    def run(*words, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "pyvmm", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        return done

    return run


@pytest.fixture
def attach(real_kvm):
    """`pyvmm attach` on a terminal of its own."""
    attached = []

    def start(name):
        attached.append(
            pexpect.spawn(sys.executable, ["-m", "pyvmm", "attach", name], timeout=PATIENCE, encoding="utf-8")
        )
        attached[-1].delaybeforesend = None
        return attached[-1]

    yield start
    for child in attached:
        child.close(force=True)


def listed(ask):
    """What `pyvmm ps` says of the guest; other tests may have guests, too."""
    (row,) = [one for one in json.loads(ask("ps", "--json").stdout) if one["name"] == HELD]
    return row


def test_guest_is_controlled_while_it_runs(boot, ask, attach):
    guest = boot(options=["--name", HELD, "--balloon"])
    row = listed(ask)
    assert (row["state"], row["cpus"], row["mem"]) == ("running", 1, 256 << 20)
    assert "is running (process" in ask("run", "--name", HELD, "/dev/null", code=125).stderr

    assert ask("pause", HELD).stderr == f"pyvmm: {HELD}: paused\n"
    assert listed(ask)["state"] == "paused"
    guest.sendline("echo after''pause")
    assert guest.expect_any("afterpause", pexpect.TIMEOUT, timeout=2) == 1, "a paused guest must not run"
    registers = json.loads(ask("debug", HELD, "regs", "--json").stdout)["registers"]
    assert int(registers["pc"], 16) > 1 << 32, "a virtual address of the kernel, or of the shell"
    # The start of RAM is the firmware's, and RAM behind it has the kernel's image with its magic.
    image = ask("debug", HELD, "mem", "0x80200000", "64").stdout
    assert "|" in image and image.startswith("0000000080200000  ")
    assert ask("resume", HELD).stderr == f"pyvmm: {HELD}: running\n"
    guest.expect("afterpause")
    guest.run("true")

    found = json.loads(ask("inspect", HELD, "--json").stdout)
    assert found["name"] == HELD
    assert {"irqchip", "slots", "bus", "virtio", "exits"} <= found.keys()
    assert "irqchip: " in ask("inspect", HELD).stdout
    # One clock, whoever asks: it began before, and has gone on since.
    assert row["uptime"] < found["uptime"] < listed(ask)["uptime"]
    assert ask("balloon", HELD, "+32M").stdout.startswith(f"{HELD}: 32M wanted, ")

    terminal = attach(HELD)
    terminal.expect("attached to held")
    terminal.sendline("echo from''attached")
    terminal.expect("fromattached")
    guest.expect("fromattached")
    terminal.send("\x01d")
    terminal.expect("detached from held, which goes on")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    guest.run("true")

    terminal = attach(HELD)
    terminal.expect("attached to held")
    # The busybox of this initramfs has nobody who heeds the power key: its kernel powers off.
    said = ask("stop", HELD, "--grace=5s").stderr
    assert "powered off" in said
    terminal.expect("pyvmm: the guest powered off")
    assert guest.end() == (0, "the guest powered off")
    assert not os.path.exists(f"{os.environ.get('PYVMM_RUN_DIR', '')}/{HELD}/lock")


def test_reset_restarts_the_guest_in_the_same_process(boot, ask):
    guest = boot(options=["--name", HELD])
    guest.run("touch /before")
    before = listed(ask)["pid"]
    assert ask("reset", HELD).stderr == f"pyvmm: {HELD}: restarted\n"
    guest.wait_for_shell()
    guest.run("test ! -e /before")
    assert listed(ask)["pid"] == before
    assert ask("kill", HELD).stderr == f"pyvmm: {HELD}: ended\n"
    assert guest.end()[0] == 137
