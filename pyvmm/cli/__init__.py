# SPDX-License-Identifier: Apache-2.0
"""The command line: one module a subcommand, imported when it is called."""

from __future__ import annotations

import sys

from pyvmm import outcome
from pyvmm.cli.parser import HelpRequested
from pyvmm.cli.say import say
from pyvmm.errors import KvmUnavailable, PyvmmError
from pyvmm.nearest import nearest

COMMANDS = {
    "run": "boot a guest, with its console on this terminal",
    "doctor": "can this host run guests, and what to do if not",
    "dtb": "the device tree for these options",
    "lab": "an emulated RISC-V KVM host, for machines that are not RISC-V",
    "version": "the version of pyvmm and what it runs on",
}


def main(argv: list[str] | None = None) -> int:
    """Run ``pyvmm``; returns the exit code (docs/reference/exit-codes.md)."""
    words = sys.argv[1:] if argv is None else argv
    name = words[0] if words else "--help"
    if name in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0 if words else outcome.EXIT_USAGE
    if name in ("-V", "--version"):
        name = "version"
    if name not in COMMANDS:
        say(f"there is no command {name!r}.{nearest(name, COMMANDS)} See pyvmm --help.")
        return outcome.EXIT_USAGE
    return _run(name, words[1:])


def _run(name: str, words: list[str]) -> int:
    from importlib import import_module

    module = import_module(f"pyvmm.cli.{name}")
    try:
        code: int = module.main(words)
        return code
    except HelpRequested:
        sys.stdout.write(module.COMMAND.help())
        return 0
    except KvmUnavailable as error:
        say(str(error))
        return outcome.EXIT_NO_KVM
    except PyvmmError as error:
        say(str(error))
        return outcome.EXIT_USAGE
    except KeyboardInterrupt:
        return outcome.EXIT_SIGNAL + 2
    except BrokenPipeError:
        return outcome.EXIT_SIGNAL + 13


def _help() -> str:
    lines = ["usage: pyvmm COMMAND [options]", "", "Run RISC-V guests on KVM.", ""]
    lines += [f"  {name:<10}{summary}" for name, summary in COMMANDS.items()]
    lines += ["", "pyvmm COMMAND --help says more."]
    return "\n".join(lines) + "\n"
