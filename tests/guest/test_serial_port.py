# SPDX-License-Identifier: Apache-2.0
"""Hand-made guests that print through the serial port, under `pyvmm run`."""

from string import ascii_letters

import pytest
from test_run_ends import make_image

THR = 0x1000_0000
DBCN, WRITE_BYTE = 0x4442434E, 2
SRST = 0x53525354
LINES = 100


def prints(asm, text):
    """Stores, one after the other, and nothing else."""
    for value in text:
        asm.li("a0", value)
        asm.sb("a0", 0, "t0")


def prints_lines(asm):
    """LINES times the letters, which no exit but that of a full ring interrupts; returns the text."""
    asm.li("t0", THR)
    asm.li("t1", LINES)
    asm.label("line")
    prints(asm, ascii_letters.encode() + b"\n")
    asm.addi("t1", "t1", -1)
    asm.bne("t1", "zero", "line")


TEXT = f"{ascii_letters}\n" * LINES


@pytest.mark.parametrize("rest", ["sleeps", "spins"])
def test_text_of_a_guest_that_prints_and_then_makes_no_exit_arrives(tmp_path, start_pyvmm, rest):
    def build(asm):
        prints_lines(asm)
        asm.label("rest")
        if rest == "sleeps":
            asm.wfi()
        asm.j("rest")

    process = start_pyvmm("--console=serial", make_image(tmp_path / "prints", build))
    assert process.stdout.read(len(TEXT)).decode() == TEXT
    process.terminate()
    process.communicate()


def test_nothing_is_missing_and_all_is_in_order_at_the_end(tmp_path, run_pyvmm):
    def build(asm):
        prints_lines(asm)
        for value in b"12345":
            asm.sbi(DBCN, WRITE_BYTE, value)
            asm.li("t0", THR)
            prints(asm, bytes((value + 16,)))
        asm.sbi(SRST, 0, 0, 0)

    done = run_pyvmm("--console=serial", make_image(tmp_path / "order", build))
    assert done.returncode == 0
    assert done.stdout == TEXT + "1A2B3C4D5E"


def test_every_store_is_in_the_trace(tmp_path, run_pyvmm):
    def build(asm):
        asm.li("t0", THR)
        prints(asm, b"x" * 100)
        asm.sbi(SRST, 0, 0, 0)

    done = run_pyvmm("--console=serial", "--trace=mmio", make_image(tmp_path / "traced", build))
    assert done.stdout == "x" * 100
    assert done.stderr.count("uart.THR write 1 0x78") == 100


def test_guest_that_prints_for_ever_is_ended_by_the_timeout(tmp_path, run_pyvmm):
    def build(asm):
        asm.li("t0", THR)
        asm.label("again")
        prints(asm, b"0123456789abcdef")
        asm.j("again")

    done = run_pyvmm("--console=serial", "--timeout=5s", make_image(tmp_path / "flood", build))
    assert done.returncode == 124
    assert len(done.stdout) > 1000
    assert done.stdout.startswith("0123456789abcdef" * 10)
