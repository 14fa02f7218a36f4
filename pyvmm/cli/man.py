# SPDX-License-Identifier: Apache-2.0
"""``pyvmm man``: the manual page, written from the tables of commands and options."""

from __future__ import annotations

import sys

from pyvmm import __version__
from pyvmm.cli.parser import Command
from pyvmm.cli.tables import commands

COMMAND = Command("man", "The manual page, as roff. To read it: pyvmm man | man -l -")

_OPENING = """\
.SH NAME
pyvmm \\- run RISC\\-V guests on KVM
.SH SYNOPSIS
.B pyvmm
.I COMMAND
.RI [ options ]
.SH DESCRIPTION
A virtual machine monitor for RISC\\-V, backed by KVM. On a machine that is not RISC\\-V, guests run in the
lab, an emulated RISC\\-V host.
.SH COMMANDS
"""
_FILES = """\
.SH FILES
.TP
.I pyvmm.toml
in the current folder, or named with
.BR \\-\\-config :
options under [defaults] and [profile.NAME].
.SH EXIT STATUS
.TP
.B 0
The guest powered off, restarted with
.BR "\\-\\-on\\-reboot exit" ,
or was ended with Ctrl\\-A x. A command other than run and exec did what it was asked to.
.TP
.B 0 to 255
Of
.BR "pyvmm exec" :
the status of the command.
.TP
.B 124
It did not end within the time of
.BR \\-\\-timeout .
.TP
.B 125
The command line or a file it names is wrong, or the host failed; of
.BR "pyvmm exec" :
the guest ended before the command did.
.TP
.B 126
KVM cannot be used here; of
.BR "pyvmm exec" :
the guest cannot run the command.
.TP
.B 127
Of
.BR "pyvmm exec" :
there is no such command in the guest.
.TP
.B 128+N
pyvmm was told to end by signal N; of
.BR "pyvmm exec" :
signal N ended the command.
.TP
.B 137
The guest was ended by
.BR "pyvmm kill" ,
or by
.B pyvmm stop
when its time was over.
.TP
.B 141
Whoever read the console's output went away.
.TP
.B 254
The guest can never go on.
.TP
.B 255
The guest's kernel panicked.
"""


def main(words: list[str]) -> int:
    """Print it."""
    COMMAND.parse(words)
    sys.stdout.write(page())
    return 0


def page() -> str:
    """The manual page."""
    parts = [f'.TH PYVMM 1 "" "pyvmm {__version__}" "User Commands"\n', _OPENING]
    for command in commands().values():
        parts += [f".SS {_escaped(command.usage())}\n", *_command(command)]
    return "".join([*parts, _FILES])


def _command(command: Command) -> list[str]:
    parts = [f"{_escaped(command.summary)}\n"]
    for option in command.options:
        parts += _item(option.usage(), option.help)
    for prefix, (_, text) in command.prefixes.items():
        parts += _item(f"{prefix}EXT", text)
    return parts


def _item(usage: str, text: str) -> list[str]:
    return [".TP\n", f".B {_escaped(usage)}\n", f"{_escaped(text)}\n"]


def _escaped(text: str) -> str:
    """``text`` as roff shows it: dashes that can be copied, and no line that looks like a request."""
    plain = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line[:1] in (".", "'") else line for line in plain.split("\n"))
