# SPDX-License-Identifier: Apache-2.0
"""``pyvmm attach``: the console of a running guest, on this terminal."""

from __future__ import annotations

import os
import select
import signal
import socket

from pyvmm import outcome, terminal
from pyvmm.cli import guests, streams
from pyvmm.cli.guests import HOST
from pyvmm.cli.parser import Command
from pyvmm.cli.say import say, show
from pyvmm.control.client import Control, ControlError, ControlGone
from pyvmm.control.runfolder import CONSOLE_SOCKET, Found
from pyvmm.errors import ConfigError
from pyvmm.terminal import ATTACH_HELP_TEXT, ATTACH_KEYS, EscapeKeys, RawTerminal

COMMAND = Command(
    "attach",
    "The console of a running guest, on this terminal: first what it printed last. Ctrl-A d detaches,\n"
    "Ctrl-A ? lists the keys. When the guest ends, so does this, with the guest's exit code.",
    (HOST,),
    positional=("name", "NAME"),
)

# Typed bytes that the guest has not taken. Beyond, a terminal's are dropped: its keys must go on working.
_UNTAKEN = 64 << 10
_PATIENCE = 10.0  # seconds from the last output to the word on how the guest ended
_TOLD = {"paused": "the guest is paused", "resumed": "the guest goes on", "rebooting": "the guest restarts"}


def main(words: list[str]) -> int:
    """Attach this terminal; the exit code is 0 after the detach key, else the guest's."""
    values = COMMAND.parse(words)
    return guests.on_guest(COMMAND, values, guests.name_of(values), _attach)


def _attach(found: Found) -> int:
    if not os.isatty(0):
        return _watch(found, None)
    raw = RawTerminal(0)
    try:
        return _watch(found, raw)
    finally:
        raw.close()


def _watch(found: Found, raw: RawTerminal | None) -> int:
    with guests.connect(found) as control, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as console:
        control.request("events")
        if control.request("status")["state"] == "paused":
            say(_TOLD["paused"])
        try:
            console.connect(found.path(CONSOLE_SOCKET))
        except OSError as error:
            raise ConfigError(f"The console of {found.name} cannot be had: {error.strerror}.") from error
        attached = _Attached(control, console, keys=raw is not None)
        try:
            if raw is None:
                attached.run()
            else:
                say(f"attached to {found.name} (Ctrl-A d to detach, Ctrl-A ? for help)")
                with raw:
                    attached.run()
        finally:
            attached.close()
        if attached.detached:
            say(f"detached from {found.name}, which goes on")
            return 0
        return _say_end(attached.end or _last_words(control))


def _last_words(control: Control) -> guests.Values:
    """The event that says how the guest ended, if it comes."""
    try:
        for event in control.more_events(_PATIENCE):
            if event["event"] == "ended":
                return event
    except ControlGone:
        pass
    return {}


def _say_end(end: guests.Values) -> int:
    if not end:
        say("the guest's pyvmm has gone without a word: it was killed")
        return outcome.EXIT_USAGE
    say(str(end["message"]))
    return int(end["exit_code"])


class _Attached:
    """Between this terminal, or pipes, and the guest's sockets; nothing here waits for the guest.

    ``detached``: the user wanted to go. ``end``: the event of the guest's end, once it has come.
    """

    def __init__(self, control: Control, console: socket.socket, *, keys: bool) -> None:
        self.detached = False
        self.end: guests.Values = {}
        self._control = control
        self._console = console
        self._keys = EscapeKeys(ATTACH_KEYS) if keys else None
        self._untaken = bytearray()
        self._reading = True
        self._watching = True
        self._resized = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        console.setblocking(False)
        if keys:
            signal.signal(signal.SIGWINCH, lambda *_: os.eventfd_write(self._resized, 1))
            os.eventfd_write(self._resized, 1)

    def close(self) -> None:
        """Forget the terminal's size."""
        if self._keys is not None:
            signal.signal(signal.SIGWINCH, signal.SIG_DFL)
        os.close(self._resized)

    def run(self) -> None:
        """Pass bytes on until the guest ends or the user goes."""
        self._happened()
        while self._watching and not self.detached:
            for fd, _ in self._wait():
                self._react(fd)

    def _wait(self) -> list[tuple[int, int]]:
        poll = select.poll()
        poll.register(self._console, select.POLLIN | (select.POLLOUT if self._untaken else 0))
        poll.register(self._resized, select.POLLIN)
        if not self._control.ended:
            poll.register(self._control, select.POLLIN)
        if self._reading and (self._keys is not None or len(self._untaken) < _UNTAKEN):
            poll.register(0, select.POLLIN)
        return poll.poll()

    def _react(self, fd: int) -> None:
        if fd == 0:
            self._typed()
        elif fd == self._console.fileno():
            self._type()
            self._printed()
        elif fd == self._resized:
            os.eventfd_read(fd)
            self._resize()
        else:
            self._happened()

    def _typed(self) -> None:
        try:
            data = streams.read_some(0)
        except OSError:  # the terminal has gone
            data = b""
        self._reading = bool(data)
        for item in [data] if self._keys is None else self._keys.feed(data):
            if isinstance(item, bytes):
                self._untaken += item
            else:
                self._obey(item)
        if self._keys is not None:
            del self._untaken[_UNTAKEN:]
        self._type()

    def _obey(self, command: str) -> None:
        if command == terminal.DETACH:
            self.detached = True
        elif command == terminal.HELP:
            show(ATTACH_HELP_TEXT)
        else:
            self._ask("kill")

    def _type(self) -> None:
        try:
            while self._untaken:
                del self._untaken[: self._console.send(self._untaken)]
        except BlockingIOError:
            pass
        except OSError:
            self._untaken.clear()  # the guest has ended, which its output says, too

    def _printed(self) -> None:
        try:
            data = self._console.recv(streams.PIECE)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        self._watching = bool(data)
        streams.write_all(1, data)

    def _resize(self) -> None:
        size = os.get_terminal_size(0)
        if size.columns and size.lines:
            self._ask("resize", columns=size.columns, rows=size.lines)

    def _ask(self, do: str, **params: int) -> None:
        try:
            self._control.request(do, **params)
        except (ControlError, ControlGone):
            pass  # it is ending, which is said in the end
        self._happened()  # what came along with the answer makes nothing readable

    def _happened(self) -> None:
        for event in self._control.take_events():
            if event["event"] == "ended":
                self.end = event
            elif event["event"] in _TOLD:
                say(_TOLD[event["event"]])
