# SPDX-License-Identifier: Apache-2.0
"""The command line: one module a subcommand, imported when it is called."""

from __future__ import annotations

import io
import os
import sys

from pyvmm import outcome
from pyvmm.cli.parser import HelpRequested
from pyvmm.cli.say import say
from pyvmm.errors import KvmUnavailable, PyvmmError

COMMANDS = {
    "run": "boot a guest, with its console on this terminal",
    "exec": "boot a guest, run a command in it, exit with its status",
    "ps": "the guests that run",
    "attach": "the console of a running guest",
    "stop": "end a guest, gently if it lets us",
    "kill": "end a guest at once",
    "pause": "make a guest stand still",
    "resume": "let a paused guest go on",
    "reset": "restart a guest",
    "inspect": "how a running guest is put together, and what it does",
    "balloon": "take memory from a running guest, and give it back",
    "debug": "a running guest's registers and memory, and SysRq",
    "doctor": "can this host run guests, and what to do if not",
    "dtb": "the device tree for these options",
    "lab": "an emulated RISC-V KVM host, for machines that are not RISC-V",
    "completion": "completion for bash, zsh or fish",
    "man": "the manual page",
    "version": "the version of pyvmm and what it runs on",
}


ALIASES = {"list": "ps"}


def main(argv: list[str] | None = None) -> int:
    """Run ``pyvmm``; returns the exit code (docs/reference/exit-codes.md)."""
    _open_standard_streams()
    words = sys.argv[1:] if argv is None else argv
    name = words[0] if words else "--help"
    if name in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0 if words else outcome.EXIT_USAGE
    if name in ("-V", "--version"):
        name = "version"
    name = ALIASES.get(name, name)
    if name not in COMMANDS:
        from pyvmm.nearest import nearest

        say(f"there is no command {name!r}.{nearest(name, COMMANDS)} See pyvmm --help.")
        return outcome.EXIT_USAGE
    return _run(name, words[1:])


def _run(name: str, words: list[str]) -> int:
    from importlib import import_module

    module = import_module(f"pyvmm.cli.{name}")
    try:
        code: int = module.main(words)
        sys.stdout.flush()
        return code
    except HelpRequested:
        sys.stdout.write(module.COMMAND.help())
        sys.stdout.flush()
        return 0
    except KvmUnavailable as error:
        say(str(error))
        return outcome.EXIT_NO_KVM
    except PyvmmError as error:
        say(str(error))
        return outcome.EXIT_USAGE
    except KeyboardInterrupt:
        say("interrupted")
        return outcome.EXIT_SIGNAL + 2
    except OSError as error:
        return _host_failed(error)


def _host_failed(error: OSError) -> int:
    """stdout cannot be written, or nobody foresaw what the host refused."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter tries once more at its end
    if isinstance(error, BrokenPipeError):
        return outcome.EXIT_SIGNAL + 13
    say(f"the host refused: {error.strerror}" + (f" ({error.filename})" if error.filename else ""))
    return outcome.EXIT_USAGE


def _open_standard_streams() -> None:
    """Started with a standard descriptor closed, the next file opened would be taken for it."""
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(fd)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    # Names of files are bytes: not every one is text that every terminal has letters for.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _help() -> str:
    lines = ["usage: pyvmm COMMAND [options]", "", "Run RISC-V guests on KVM.", ""]
    lines += [f"  {name:<12}{summary}" for name, summary in COMMANDS.items()]
    lines += ["", "pyvmm COMMAND --help says more."]
    return "\n".join(lines) + "\n"
