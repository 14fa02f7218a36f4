# SPDX-License-Identifier: Apache-2.0
import pytest

from pyvmm.testing.errors import GuestCommandError


def test_command_that_failed_shows_what_it_said():
    error = GuestCommandError("x", 3, "one\ntwo\n", "\x1b!\n")
    assert str(error).splitlines() == [
        "'x' ended with status 3 in the guest",
        "stdout:",
        "    one",
        "    two",
        "stderr:",
        "    ^[!",
    ]


def test_command_that_failed_with_many_lines_shows_the_last_ones_and_keeps_all():
    said = "".join(f"line {number}\n" for number in range(1000, 3000))
    error = GuestCommandError("x", 1, said, "")
    lines = str(error).splitlines()
    assert lines[1:4] == ["stdout:", "    (19600 letters before this)", "    line 2960"]
    assert lines[-1] == "    line 2999"
    assert error.stdout == said


@pytest.mark.parametrize("letter", ["x", "\x1b", "\n"])
def test_text_of_a_failed_command_is_bounded_whatever_it_said(letter):
    error = GuestCommandError("x", 1, letter * (1 << 20), letter * (1 << 20))
    assert len(str(error)) < 64 << 10
