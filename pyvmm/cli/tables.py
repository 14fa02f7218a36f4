# SPDX-License-Identifier: Apache-2.0
"""All commands, and what their arguments are: for the completion, the manual page and the reference."""

from __future__ import annotations

from pyvmm.cli import COMMANDS
from pyvmm.cli.parser import Command, Option

FILE, FOLDER, PROFILE, GUEST = "file", "folder", "profile", "guest"

# First word of a METAVAR -> what it is.
_KINDS = {"FILE": FILE, "KERNEL": FILE, "DIR": FOLDER, "PROFILE": PROFILE}


def commands() -> dict[str, Command]:
    """Every command by the words that call it: ``run``, ``lab``, ``lab start``."""
    from importlib import import_module

    found: dict[str, Command] = {}
    for name in COMMANDS:
        module = import_module(f"pyvmm.cli.{name}")
        found[name] = module.COMMAND
        for inner, command in getattr(module, "COMMANDS", {}).items():
            if isinstance(command, Command):
                found[f"{name} {inner}"] = command
    return found


def subcommands(name: str, known: dict[str, Command]) -> dict[str, Command]:
    """The commands below ``name``, by their last word."""
    return {words.partition(" ")[2]: known[words] for words in known if words.startswith(f"{name} ")}


def option_kind(option: Option) -> str | None:
    """What an option's value names, as far as that can be completed."""
    return _kind(option.metavar)


def positional_kind(command: Command) -> str | None:
    """What a command's argument names, as far as that can be completed."""
    metavar = command.arguments or (command.positional[1] if command.positional else "")
    return GUEST if metavar.removeprefix("[").startswith("NAME") else _kind(metavar)


def positional_choices(command: Command) -> list[str]:
    """What a command's argument can be, where that is one of some words."""
    metavar = command.positional[1] if command.positional else ""
    return metavar.split("|") if "|" in metavar else []


def _kind(metavar: str | None) -> str | None:
    word = (metavar or "").partition("[")[0].partition(",")[0]
    return _KINDS.get(word)
