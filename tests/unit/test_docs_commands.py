# SPDX-License-Identifier: Apache-2.0
"""No page names a command or an option that does not exist, and what can run here is run."""

import ast
import importlib
import re
from importlib.util import find_spec

import pytest
from pages import PAGES, ROOT, blocks, console_lines

import pyvmm
from pyvmm import cli, outcome, profiles
from pyvmm.cli import tables
from pyvmm.config import MachineConfig

COMMANDS = tables.commands()
# What needs neither a guest nor a lab.
RUNNABLE = ("dtb", "doctor", "version", "completion", "man")


LINES = list(console_lines())


def command_of(words):
    """The command that the words call, and the words for it."""
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in COMMANDS:
            return COMMANDS[name], words[count:]
    raise AssertionError(f"there is no command {words[0]}")


def test_the_pages_have_commands():
    assert len(LINES) > 40


@pytest.mark.parametrize(
    ("page", "words"), LINES, ids=[f"{page}: {' '.join(words)}" for page, words in LINES]
)
def test_command_on_a_page_is_understood(page, words):
    command, rest = command_of(words)
    values = command.parse(rest)
    MachineConfig(**{key: value for key, value in values.items() if key in profiles.KEYS})


def runnable():
    return [
        words
        for _, words in LINES
        if "-o" not in words and (words[0] in RUNNABLE or ("--dry-run" in words and "Image" not in words))
    ]


@pytest.mark.parametrize("words", runnable(), ids=" ".join)
def test_command_on_a_page_that_can_run_here_does(words, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = cli.main(words)
    assert code == 0 or (words[0], code) == ("doctor", outcome.EXIT_NO_KVM)
    out, err = capfd.readouterr()
    assert out
    assert err == ""


@pytest.mark.parametrize(("page", "text"), list(blocks("toml")), ids=lambda value: value[:30].strip())
def test_file_on_a_page_is_one_that_pyvmm_takes(page, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyvmm.toml").write_text(text)
    for name in (None, *re.findall(r"^\[profile\.(.*)\]", text, re.MULTILINE)):
        profiles.resolve({}, profile=name)


def programs():
    return [one for one in blocks("python") if one[1].startswith(("import ", "from "))]


@pytest.mark.parametrize(("page", "text"), programs(), ids=lambda value: value[:30].strip())
def test_names_that_a_program_on_a_page_imports_exist(page, text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(
                hasattr(module, alias.name) or find_spec(f"{node.module}.{alias.name}")
                for alias in node.names
            )
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pyvmm"
        ):
            assert hasattr(pyvmm, node.attr)


def options():
    return {name for command in COMMANDS.values() for option in command.options for name in option.names} | {
        "--help",
        "--version",
    }


# lkvm's, QEMU's, git's and so on: named in prose, not ours.
FOREIGN_COLUMNS = ("coming-from-lkvm.md", "coming-from-qemu.md")


def named_options(page):
    """Long options in code on a page: of tables that compare, only those in pyvmm's column."""
    for line in page.read_text().splitlines():
        text = line
        if page.name in FOREIGN_COLUMNS and line.startswith("| "):
            text = "|".join(line.split(" | ")[1:])
        for span in re.findall(r"`([^`]*)`", text):
            yield from re.findall(r"(?<![\w-])(--[a-z0-9][a-z0-9-]*)", span)


OURS = [page for page in PAGES if page.name.startswith("coming-from") or page.parent.name == "reference"]


@pytest.mark.parametrize("page", OURS, ids=lambda page: page.name)
def test_option_named_on_a_page_exists(page):
    prefixes = ("--disable-", "--vmm-")
    known = options()
    strangers = {name for name in named_options(page) if name not in known and not name.startswith(prefixes)}
    assert not strangers


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing
