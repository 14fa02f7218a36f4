# SPDX-License-Identifier: Apache-2.0
"""docs/howto/pytest.md says what there is."""

import inspect
import re
import shlex
from pathlib import Path

import pytest

from pyvmm import pytest_plugin
from pyvmm.testing.settings import Settings

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/howto/pytest.md").read_text()


def test_every_option_is_on_the_page():
    options = [f"--vmm-{name.replace('_', '-')}" for name, _, _ in pytest_plugin._OPTIONS]
    assert [option for option in options if f"`{option}" not in PAGE] == []


def test_every_fixture_is_on_the_page():
    source = inspect.getsource(pytest_plugin).split("@pytest.fixture")[1:]
    names = [text.partition("def ")[2].partition("(")[0] for text in source]
    assert len(names) == 10
    assert [name for name in names if f"| `{name}` |" not in PAGE] == []


def test_every_marker_is_on_the_page():
    names = [line.partition(":")[0].partition("(")[0] for line in pytest_plugin._MARKERS]
    assert [name for name in names if f"| `{name}" not in PAGE] == []


def test_ten_lines_are_those_of_the_examples():
    _, _, code = (ROOT / "examples/test_smp.py").read_text().partition('"""\n\n')
    assert code in PAGE


@pytest.mark.parametrize("line", re.findall(r"^\$ pytest (.*)$", PAGE, re.MULTILINE))
def test_command_on_the_page_is_understood(pytester, monkeypatch, line):
    monkeypatch.delenv("VMM_HOST", raising=False)
    settings = Settings(pytester.parseconfig(*shlex.split(line)))
    assert settings.where in ("auto", "lab:aia", "lab:plic")
