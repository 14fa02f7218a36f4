# SPDX-License-Identifier: Apache-2.0
"""The user's terminal: raw mode that is always undone, and the escape keys.

Raw mode outlives the process that set it. An exit handler cannot run after SIGKILL, so a guardian
process waits on a pipe whose other end dies with us, and puts the terminal back.
"""

from __future__ import annotations

import os
import termios
import tty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

PREFIX = 0x01  # Ctrl-A

QUIT = "quit"
HELP = "help"
TRACE = "trace"
BREAK = "break"
DETACH = "detach"
#: Of a terminal on which a guest runs.
RUN_KEYS = {ord("x"): QUIT, ord("?"): HELP, ord("h"): HELP, ord("t"): TRACE, ord("b"): BREAK}

HELP_TEXT = """\
Ctrl-A x  end the guest at once (like pulling the plug)
Ctrl-A b  send a BREAK to the serial console (SysRq: follow with a key)
Ctrl-A t  switch the trace on or off
Ctrl-A a  send Ctrl-A itself to the guest (also Ctrl-A Ctrl-A)
Ctrl-A ?  this help
"""


#: Of a terminal that is attached to a guest which runs elsewhere.
ATTACH_KEYS = {ord("d"): DETACH, ord("x"): QUIT, ord("?"): HELP, ord("h"): HELP}

ATTACH_HELP_TEXT = """\
Ctrl-A d  detach from the guest, which goes on
Ctrl-A x  end the guest at once (like pulling the plug)
Ctrl-A a  send Ctrl-A itself to the guest (also Ctrl-A Ctrl-A)
Ctrl-A ?  this help
"""


class RawTerminal:
    """Raw mode on a terminal descriptor while the context lasts.

    The guardian process starts with the object: make it before the process has threads or guest memory, which
    a fork would share copy-on-write. ``close`` ends the guardian.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved = termios.tcgetattr(fd)
        reader, self._guard_fd = os.pipe()
        self._guardian = os.fork()
        if self._guardian == 0:
            self._guard(reader)
        os.close(reader)

    def __enter__(self) -> RawTerminal:
        tty.setraw(self._fd, termios.TCSANOW)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # TCSADRAIN: what the guest printed last must still come out under raw rules.
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)
        except (termios.error, OSError):
            pass  # the terminal itself is gone

    def close(self) -> None:
        """End the guardian, which puts the terminal back once more."""
        os.close(self._guard_fd)
        os.waitpid(self._guardian, 0)

    def _guard(self, reader: int) -> None:
        """Child process: wait for the parent's end, then restore. Never returns."""
        try:
            os.setsid()  # out of reach of the terminal's signals, and free to change it from the background
            terminal = os.dup2(self._fd, 0)
            os.dup2(reader, 1)
            os.closerange(2, 1 << 16)  # whoever waits for the end of our pipes must not wait for the guardian
            os.read(1, 1)
            termios.tcsetattr(terminal, termios.TCSANOW, self._saved)
        finally:
            os._exit(0)


class EscapeKeys:
    """Splits what the user types into bytes for the guest and commands for pyvmm, which follow Ctrl-A."""

    __slots__ = ("_armed", "_commands")

    def __init__(self, commands: dict[int, str] = RUN_KEYS) -> None:
        self._commands = commands
        self._armed = False

    def feed(self, data: bytes) -> list[bytes | str]:
        """Bytes for the guest and commands, in the order in which they were typed."""
        typed: list[bytes | str] = []
        plain = bytearray()
        for byte in data:
            if not self._armed:
                self._armed = byte == PREFIX
                if not self._armed:
                    plain.append(byte)
                continue
            self._armed = False
            if byte in (PREFIX, ord("a")):
                plain.append(PREFIX)
            elif byte in self._commands:
                typed += [bytes(plain), self._commands[byte]]
                plain.clear()
            else:
                plain += bytes((PREFIX, byte))
        return [item for item in (*typed, bytes(plain)) if item]
