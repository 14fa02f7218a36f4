# SPDX-License-Identifier: Apache-2.0
import pytest

from pyvmm.testing.errors import ConsoleTimeout
from pyvmm.testing.nearlines import near_lines

LINES = [
    "[    0.000000] Linux version 6.12.48",
    "[    0.140000] smp: Brought up 1 node, 1 CPU",
    "",
    "Debian GNU/Linux 13 debian hvc0",
    "debian Login: ",
]


@pytest.mark.parametrize(
    ("patterns", "near"),
    [
        (["debian login: $"], [4]),
        ([r"smp: Brought up (\d+) node, 2 CPUs"], [1]),
        (["login: ", "Linux version 7"], [0, 4]),
        (["nothing like it"], []),
        ([], []),
        ([".*", "^$", "  "], []),
    ],
)
def test_near_lines_are_those_that_have_most_of_a_pattern(patterns, near):
    assert near_lines(LINES, patterns) == near


def test_of_many_near_lines_the_last_three_count():
    assert near_lines(["login"] * 5, ["login:"]) == [2, 3, 4]


def test_near_lines_are_marked_among_the_others():
    error = ConsoleTimeout("nothing came", tail=["one", "two"], near=[1])
    assert str(error).splitlines()[1:] == ["the console's last lines:", "    one", ">   two"]
    assert error.tail == ["one", "two"]
