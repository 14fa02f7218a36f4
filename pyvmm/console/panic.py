# SPDX-License-Identifier: Apache-2.0
"""Recognising a Linux panic in console output."""

from __future__ import annotations

#: Linux prints this after the panic's message, once it has given up.
_END = b"---[ end Kernel panic"
_START = b"Kernel panic - not syncing"
_MESSAGE_LIMIT = 200


class PanicWatch:
    """``seen`` turns true with the panic's own line (a guest with ``panic=N`` goes on to reboot), ``ended``
    with the line that Linux prints when it stops for good.
    """

    __slots__ = ("ended", "message", "seen")

    def __init__(self) -> None:
        self.message = ""
        self.seen = False
        self.ended = False

    def feed(self, line: bytes) -> None:
        """Look at one line of output."""
        start = line.find(_START)
        if start < 0:
            return
        self.seen = True
        self.message = _printable(line[start:].rstrip(b"\r\n").removesuffix(b" ]---"))
        self.ended = _END in line


def _printable(text: bytes) -> str:
    """The guest's words without control characters: they are shown on the user's terminal."""
    shown = text[:_MESSAGE_LIMIT].decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in shown)
