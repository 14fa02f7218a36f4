#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the pages of docs/reference that say what the code says: commands, configuration, devices, library.

    scripts/gen_reference.py

A page that also has prose keeps what stands above the line MARK. tests/unit/test_reference.py fails when a
page is not what this writes.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pyvmm  # noqa: E402
from pyvmm import config, devicelist, profiles  # noqa: E402
from pyvmm.cli import COMMANDS, options, tables  # noqa: E402
from pyvmm.cli.parser import Command, Option  # noqa: E402
from pyvmm.devices import KINDS, device_kind  # noqa: E402
from pyvmm.devices.settings import Setting  # noqa: E402

REFERENCE = ROOT / "docs/reference"
MARK = "<!-- What follows is written by scripts/gen_reference.py. -->\n"


def pages() -> dict[str, str]:
    """The generated text of each page, by file name."""
    known = tables.commands()
    found = {f"{name}.md": command_page(name, known) for name in COMMANDS}
    found["configuration.md"] = configuration()
    found["devices.md"] = devices()
    found["library.md"] = library()
    return found


def whole(name: str, generated: str) -> str:
    """A page with the prose that it has above the mark."""
    path = REFERENCE / name
    above, mark, _ = path.read_text().partition(MARK) if path.exists() else ("", "", "")
    return (above if mark else "") + MARK + "\n" + generated


def cell(text: str) -> str:
    """``text`` inside a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def code(text: str) -> str:
    """``text`` as code inside a table."""
    return f"`{cell(text)}`"


def command_page(name: str, known: dict[str, Command]) -> str:
    """A command, and those below it."""
    lines = [f"# pyvmm {name}", "", *command_lines(known[name], "##")]
    for inner, command in tables.subcommands(name, known).items():
        lines += [f"## pyvmm {name} {inner}", "", *command_lines(command, "###")]
    return "\n".join(lines).rstrip() + "\n"


def command_lines(command: Command, level: str) -> list[str]:
    """Its usage, summary and options, group by group."""
    lines = ["```", command.usage(), "```", "", command.summary, ""]
    groups: dict[str, list[Option]] = {}
    for option in command.options:
        groups.setdefault(option.group, []).append(option)
    for group, members in groups.items():
        lines += [f"{level} {group}", "", "| option | |", "|---|---|"]
        lines += [f"| {code(option.usage())} | {cell(option.help)} |" for option in members]
        lines.append("")
    if command.prefixes:
        lines += [f"{level} Extensions", "", "| option | |", "|---|---|"]
        for prefix, (_, text) in command.prefixes.items():
            lines.append(f"| {code(f'{prefix}EXT')} | {cell(text)} |")
        lines.append("")
    return lines


def configuration() -> str:
    """The keys of pyvmm.toml, which are the keywords of MachineConfig."""
    by_key = {
        option.key: option
        for option in (*options.MACHINE_OPTIONS, *options.RUN_OPTIONS, options.NAME)
        if option.key in profiles.KEYS
    }
    lines = ["## Keys", "", "| key | takes | default | on the command line | |", "|---|---|---|---|---|"]
    defaults = config.MachineConfig.__init__.__kwdefaults__ or {}
    for key in profiles.KEYS:
        option = by_key.get(key)
        default = "" if defaults[key] in (None, "") else code(repr(defaults[key]))
        family = next((one for one, (its_key, _) in options.PREFIXES.items() if its_key == key), "")
        shown = code(option.long) if option else code(f"{family}EXT")
        text = option.help if option else options.PREFIXES[family][1]
        takes = cell(profiles.describe(key))
        adds = " Adds up." if key in profiles.ADDING else ""
        lines.append(f"| `{key}` | {takes} | {default} | {shown} | {cell(text)}.{adds} |")
    return "\n".join(lines) + "\n"


def devices() -> str:
    """Every kind of device and its settings."""
    lines = []
    nouns = {kind: (option, noun) for noun, (option, kind) in devicelist.NOUNS.items()}
    for kind in KINDS:
        model = device_kind(kind)
        option, noun = nouns.get(kind, ("", ""))
        also = (
            f"`{option}` on the command line, `{noun}` in Python and in `pyvmm.toml`; or " if option else ""
        )
        lines += [f"## {kind}", "", f"{also}`--device {kind},...`.", ""]
        if model.POSITIONAL:
            words = " and ".join(f"`{key}`" for key in model.POSITIONAL)
            lines += [f"The first words without a key are {words}.", ""]
        if not model.SETTINGS:
            lines += ["It has no settings.", ""]
            continue
        lines += ["| setting | takes | default | |", "|---|---|---|---|"]
        lines += [setting_row(key, setting) for key, setting in model.SETTINGS.items()]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def setting_row(key: str, setting: Setting) -> str:
    """One setting."""
    default = setting.default
    if isinstance(default, bool):
        default = "on" if default else "off"
    shown = "" if default is None else code(str(default))
    return f"| `{key}` | {cell(takes(setting))} | {shown} | {cell(setting.help)} |"


def takes(setting: Setting) -> str:
    """What a setting says it takes when it is given something that it does not."""
    if setting.is_path:
        return "a path"
    for nonsense in ("", "\0"):
        try:
            setting.parse(nonsense)
        except Exception as error:
            return re.sub(r" that is not empty$", "", str(error)).rstrip(".")
    return "a text"


def library() -> str:
    """The public classes, their methods and properties, as their docstrings have them."""
    lines = []
    for name in pyvmm.__all__:
        value = getattr(pyvmm, name)
        if not isinstance(value, type):
            continue
        lines += [f"## `{name}`", "", *docstring(value), ""]
        if issubclass(value, Exception):
            bases = ", ".join(f"`{base.__name__}`" for base in value.__bases__)
            lines += [f"Derived from {bases}.", ""]
            continue
        lines += ["```python", signature(name, value.__init__), "```", ""]
        for member, found in members(value).items():
            function = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
            shown = member if isinstance(found, property) else signature(member, function)
            lines += [f"### `{shown}`", "", *docstring(function), ""]
    return "\n".join(lines).rstrip() + "\n"


def members(value: type) -> dict[str, object]:
    """Its public methods and properties, its own before those of its bases."""
    found: dict[str, object] = {}
    for owner in value.__mro__[:-1]:
        for name, member in vars(owner).items():
            is_ours = inspect.isfunction(member) or isinstance(member, (property, classmethod))
            if is_ours and not name.startswith("_"):
                found.setdefault(name, member)
    return found


def signature(name: str, function: object) -> str:
    """How it is called, with types."""
    found = inspect.signature(function)  # type: ignore[arg-type]
    words = []
    for one in found.parameters.values():
        if one.name in ("self", "cls"):
            continue
        if one.kind is one.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        default = one.default
        given = "" if default is one.empty else f" = {'...' if callable(default) else repr(default)}"
        stars = "**" if one.kind is one.VAR_KEYWORD else ""
        words.append(f"{stars}{one.name}: {one.annotation}{given}")
    result = "" if found.return_annotation in ("None", found.empty) else f" -> {found.return_annotation}"
    text = f"{name}({', '.join(words)}){result}"
    return text if len(text) < 100 else f"{name}(\n    " + ",\n    ".join(words) + f",\n){result}"


def docstring(value: object) -> list[str]:
    """Its docstring, with code as Markdown has it."""
    return (inspect.getdoc(value) or "").replace("``", "`").split("\n")


if __name__ == "__main__":
    for page, generated in pages().items():
        (REFERENCE / page).write_text(whole(page, generated))
