# SPDX-License-Identifier: Apache-2.0
"""Hand-made guests under `pyvmm run`: those that can never go on, and those that never end."""

import signal
import struct
import time
from pathlib import Path

import pytest
from booted import PATIENCE
from fakes.asm import Asm

RAM = 0x8000_0000
ENTRY = RAM + 0x20_0000


def make_image(path, build):
    """A flat Image whose first instruction jumps to what ``build(asm)`` emits behind the header."""
    code = Asm(ENTRY + 64)
    build(code)
    body = code.assemble()
    header = struct.pack("<IIQQQIIQQII", 0x0400006F, 0, 0x20_0000, 0x10_0000, 0, 2, 0, 0, 0, 0x05435352, 0)
    path.write_bytes(header + body)
    return str(path)


@pytest.mark.parametrize(
    ("name", "build", "words"),
    [
        ("nowhere", lambda a: (a.li("t0", 0x5000_0000), a.jalr("zero", "t0")), "no memory"),
        ("atomic", lambda a: (a.li("t0", 0x1000_0000), a.amoadd_w("a0", "a1", "t0")), "cannot emulate"),
        ("misaligned", lambda a: (a.li("t0", 0x1000_0001), a.lw("a0", 0, "t0")), "misaligned"),
    ],
)
def test_guest_that_cannot_go_on_ends_with_registers_and_its_code(tmp_path, run_pyvmm, name, build, words):
    image = make_image(tmp_path / name, build)
    done = run_pyvmm("--timeout=60s", image)
    assert done.returncode == 254
    assert words in done.stderr
    assert "sepc" in done.stderr
    assert done.stdout == ""


def test_guest_that_loops_is_ended_by_the_timeout(tmp_path, run_pyvmm):
    image = make_image(tmp_path / "loop", lambda a: (a.label("here"), a.j("here")))
    done = run_pyvmm("--timeout=2s", image)
    assert done.returncode == 124
    assert done.stderr.splitlines()[-1] == "pyvmm: the guest did not end within 2 s"


def test_access_to_nowhere_is_shown_by_the_trace_and_survived(tmp_path, run_pyvmm):
    def build(a):
        a.li("t0", 0x5000_0000)
        a.lw("a1", 0, "t0")
        a.sw("a1", 8, "t0")
        a.sbi(0x53525354, 0, 0, 0)

    done = run_pyvmm("--trace=mmio,sbi", make_image(tmp_path / "probe", build))
    assert done.returncode == 0
    assert "unclaimed.0x50000000 read 4 0x0 pc=0x8020004" in done.stderr
    assert "unclaimed.0x50000008 write 4 0x0" in done.stderr
    assert "unclaimed        1 read, 1 write" in done.stderr


@pytest.fixture
def start_loop(tmp_path, start_pyvmm):
    """Starts a guest that prints a letter, then loops; returns once it has printed."""

    def start(*options):
        image = make_image(
            tmp_path / "loop",
            lambda a: (
                a.li("t0", 0x1000_0000),
                a.li("a0", ord("u")),
                a.sb("a0", 0, "t0"),
                a.label("x"),
                a.j("x"),
            ),
        )
        process = start_pyvmm("--console=serial", *options, image)
        assert process.stdout.read(1) == b"u"
        return process

    return start


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_signal_ends_the_run_with_its_code(start_loop, name):
    process = start_loop()
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate()
    assert process.returncode == 128 + getattr(signal, name)
    assert errors.decode().splitlines()[-1] == f"pyvmm: ended by {name}"


@pytest.mark.long
def test_programs_that_helped_a_killed_pyvmm_end_too(tmp_path, start_loop, monkeypatch):
    mark = f"PYVMM_TEST_MARK={tmp_path}"
    monkeypatch.setenv(*mark.split("="))

    def running():
        """The names of the processes that were started with the mark in their environment."""
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                    found.add((process / "comm").read_text().strip())
            except OSError:  # it has ended meanwhile
                pass
        return found

    (tmp_path / "share").mkdir()
    process = start_loop("--network=user", f"--share={tmp_path / 'share'}")
    assert {"passt", "virtiofsd"} <= running()
    process.kill()
    process.wait()
    limit = time.monotonic() + PATIENCE
    while running():
        assert time.monotonic() < limit, running()
        time.sleep(0.1)
