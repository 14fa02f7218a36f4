# SPDX-License-Identifier: Apache-2.0
"""pyvmm's own words: on stderr, prefixed. stdout belongs to the guest."""

from __future__ import annotations

import os
import sys


def say(text: str) -> None:
    """One line to the user. A raw terminal needs the carriage return; elsewhere it does no harm on a tty."""
    _write([f"pyvmm: {text}"])


def show(text: str) -> None:
    """Several lines without a prefix (registers, a summary, help)."""
    _write(text.splitlines())


def _write(lines: list[str]) -> None:
    try:
        end = "\r\n" if sys.stderr.isatty() else "\n"
        sys.stderr.write("".join(line + end for line in lines))
        sys.stderr.flush()
    except OSError:
        # Nobody reads it. A new stream has nothing left to flush at the exit, whose code that would make 120.
        sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
