# SPDX-License-Identifier: Apache-2.0
"""Every row of docs/reference/exit-codes.md has a test; those that need a real guest are in tests/guest."""

import ast
import re
from pathlib import Path

import pytest

from pyvmm import outcome
from pyvmm.cli import man

TESTS = Path(__file__).resolve().parents[2]
PAGE = TESTS.parent / "docs/reference/exit-codes.md"

#: (code, reason) as the page has them -> the tests, each as file::function.
COVERED = {
    ("0", "poweroff"): ["unit/cli/test_run_here.py::test_end_is_said_and_has_its_exit_code"],
    ("0", "reboot"): ["unit/cli/test_run_here.py::test_end_is_said_and_has_its_exit_code"],
    ("0", "quit"): ["unit/cli/test_run_here.py::test_ctrl_a_x_ends_the_run_with_code_0"],
    ("124", "timeout"): ["unit/cli/test_run_here.py::test_end_is_said_and_has_its_exit_code"],
    ("125", "failed"): [
        "unit/cli/test_bad_input.py::test_mistake_is_one_sentence_with_code_125",
        "unit/cli/test_run_here.py::test_end_is_said_and_has_its_exit_code",
        "unit/cli/test_dry_run.py::test_bad_input_is_still_found",
    ],
    ("126", "no-kvm"): [
        "unit/cli/test_bad_input.py::test_host_that_is_not_riscv_is_said_with_code_126",
        "unit/cli/test_run_here.py::test_host_that_cannot_is_one_sentence",
    ],
    ("128 + N", "signal"): ["unit/cli/test_run_here.py::test_signal_ends_the_run_with_128_and_its_number"],
    ("137", "killed"): ["unit/cli/test_guest_commands.py::test_kill_ends_the_guest"],
    ("141", "output-closed"): ["unit/cli/test_run_here.py::test_reader_that_goes_away_is_code_141"],
    ("254", "hung"): ["unit/cli/test_run_here.py::test_end_is_said_and_has_its_exit_code"],
    ("255", "panic"): ["unit/cli/test_run_here.py::test_end_is_said_and_has_its_exit_code"],
    ("0 to 255", "status"): [
        "unit/cli/test_exec_here.py::test_streams_are_the_commands_and_so_is_the_status"
    ],
    ("126", "not-executable"): [
        "unit/cli/test_exec_here.py::test_command_that_cannot_be_run_or_is_killed_has_the_status_of_a_shell",
        "unit/guest/test_guest_agent.py::test_what_cannot_be_run_has_the_status_of_a_shell",
    ],
    ("127", "not-found"): ["unit/cli/test_exec_here.py::test_command_that_is_not_there_is_127_and_said"],
    ("128 + N", "command-signal"): [
        "unit/cli/test_exec_here.py::test_command_that_cannot_be_run_or_is_killed_has_the_status_of_a_shell",
        "unit/guest/test_guest_agent.py::test_signal_is_128_and_its_number",
    ],
    ("125", "no-status"): [
        "unit/cli/test_exec_here.py::test_guest_that_ends_first_is_told_with_its_exit_code"
    ],
}
ROWS = re.findall(r"^\| (\d[^|]*) \| `([^`]*)` \|", PAGE.read_text(), re.MULTILINE)


def test_every_row_of_the_page_has_a_test():
    assert ROWS
    assert set(ROWS) == set(COVERED)


@pytest.mark.parametrize("name", sorted({name for names in COVERED.values() for name in names}))
def test_test_that_is_named_exists(name):
    file, _, function = name.partition("::")
    tree = ast.parse((TESTS / file).read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_reason_of_an_outcome_is_on_the_page_with_its_code():
    codes = {reason: str(code) for reason, code in outcome._CODES.items()}
    assert codes.items() <= {reason: code for code, reason in ROWS}.items()


def test_manual_page_has_the_same_codes():
    section = man.page().partition(".SH EXIT STATUS")[2]
    codes = re.findall(r"^\.B (\d.*)$", section, re.MULTILINE)
    assert {code.replace(" ", "") for code in codes} == {code.replace(" ", "") for code, _ in ROWS}
    assert len(codes) == len(set(codes))
