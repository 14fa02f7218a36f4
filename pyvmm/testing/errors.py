# SPDX-License-Identifier: Apache-2.0
"""What tests fail with when the guest, not the test, went wrong."""

from __future__ import annotations

from collections.abc import Container, Sequence

from pyvmm.errors import PyvmmError

_SHOWN_LINES = 40  # of each output of a command that failed
_SHOWN_LETTERS = 8000


class GuestError(PyvmmError):
    """The guest did not do what was awaited.

    ``awaited`` says what, ``waited`` for how many seconds, ``tail`` holds the console's last lines, with
    control characters made visible. ``near`` has the numbers of those that come near to what was awaited.
    """

    def __init__(
        self,
        what: str,
        *,
        awaited: str = "",
        waited: float | None = None,
        tail: Sequence[str] = (),
        near: Container[int] = (),
    ) -> None:
        self.what = what
        self.awaited = awaited
        self.waited = waited
        self.tail = list(tail)
        lines = [what]
        if awaited:
            lines.append(f"awaited: {awaited}" + (f", for {waited:.1f} s" if waited is not None else ""))
        if tail:
            lines.append("the console's last lines:")
            lines += [f"{'>' if number in near else ' '}   {line}" for number, line in enumerate(tail)]
        super().__init__("\n".join(lines))


class GuestPanic(GuestError):
    """Linux panicked in the guest."""


class GuestHang(GuestError):
    """The guest can never go on: KVM gave up on it."""


class GuestExited(GuestError):
    """The guest, or the pyvmm that ran it, ended while something was awaited of it."""


class ConsoleTimeout(GuestError):
    """The console did not show what was awaited in time."""


class GuestTimeout(GuestError):
    """The guest did not become ready, did not end or did not finish a command in time."""


class GuestCommandError(PyvmmError):
    """A command in the guest ended with another status than 0; ``stdout`` and ``stderr`` are its output.

    The text of the exception has the last lines of it.
    """

    def __init__(self, command: object, status: int, stdout: str, stderr: str) -> None:
        self.command = command
        self.status = status
        self.stdout = stdout
        self.stderr = stderr
        lines = [f"{command!r} ended with status {status} in the guest"]
        for name, text in (("stdout", stdout), ("stderr", stderr)):
            lines += [f"{name}:", *(f"    {line}" for line in _last_lines(text))] if text else []
        super().__init__("\n".join(lines))


def _last_lines(text: str) -> list[str]:
    """The end of what a command said, as it may be shown, under a line that says how much is left out."""
    end = text[-_SHOWN_LETTERS:]
    lines = "".join(end.splitlines(keepends=True)[-_SHOWN_LINES:])
    left_out = len(text) - len(lines)
    return [*([f"({left_out} letters before this)"] if left_out else []), *visible(lines).splitlines()]


def visible(text: str) -> str:
    """``text`` with its control characters spelled out: a guest's words go to the user's terminal."""
    return "".join(one if one.isprintable() or one in "\n\t" else _spelled(one) for one in text)


def _spelled(one: str) -> str:
    if one == "\r":
        return ""
    return f"^{chr(ord(one) + 64)}" if ord(one) < 32 else one.encode("unicode_escape").decode()
