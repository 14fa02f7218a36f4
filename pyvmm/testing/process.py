# SPDX-License-Identifier: Apache-2.0
"""The ``pyvmm run`` of a guest under test: its console, its control socket, its end.

Its standard input and output are one socket, which is the guest's console: unlike console.sock it leaves
nothing out, has the first byte, and ends when the guest does.
"""

from __future__ import annotations

import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyvmm import outcome
from pyvmm.control.client import Control, ControlError, ControlGone
from pyvmm.testing import artifacts
from pyvmm.testing.errors import GuestTimeout, visible
from pyvmm.testing.log import ConsoleLog
from pyvmm.testing.place import Place

LOST = "lost"
_POLL = 0.05
_GLANCE = 0.5  # seconds between looks whether pyvmm itself is gone
_EVENTS_PATIENCE = 1.0
_KILL_PATIENCE = 10.0
_REASONS = {
    outcome.EXIT_OK: outcome.POWEROFF,
    outcome.EXIT_TIMEOUT: outcome.TIMEOUT,
    outcome.EXIT_USAGE: outcome.FAILED,
    outcome.EXIT_NO_KVM: "no-kvm",
    outcome.EXIT_HUNG: outcome.HUNG,
    outcome.EXIT_PANIC: outcome.PANIC,
}


class End:
    """How a guest ended: ``reason`` as in docs/reference/exit-codes.md, ``exit_code`` and ``message``."""

    def __init__(self, reason: str, exit_code: int, message: str) -> None:
        self.reason = reason
        self.exit_code = exit_code
        self.message = message

    def __repr__(self) -> str:
        return f"<{self.reason}: {self.message}>"


class GuestProcess:
    """Started with its making. ``end`` is None while it runs; ``sockets`` is the folder of its sockets.

    One thread takes the guest's output, so that the guest never waits for a test, another its events.
    ``changed`` is called on the first after output and at the end.
    """

    def __init__(
        self,
        place: Place,
        words: Sequence[str],
        sockets: Path,
        folder: Path,
        log: ConsoleLog,
        changed: Callable[[], None],
    ) -> None:
        self.end: End | None = None
        self._sockets = sockets
        self._folder = folder
        self._log = log
        self._changed = changed
        self._events: threading.Thread | None = None
        self._ended_event: dict[str, Any] = {}
        self._console, theirs = socket.socketpair()
        log.begin()
        with theirs, (folder / artifacts.SAID).open("wb") as said:
            self._process = place.popen(words, stdin=theirs, stdout=theirs, stderr=said)
        self._pump = threading.Thread(target=self._read, daemon=True)
        self._pump.start()

    def path(self, kind: str) -> str:
        """The path of one of its sockets: ``control`` or ``agent``."""
        return str(self._sockets / f"{kind}.sock")

    def wait_for_control(self, limit: float) -> None:
        """Wait until it can be asked something, or has ended. Raises GuestTimeout after ``limit`` seconds."""
        deadline = time.monotonic() + limit
        while not self._log.wait_end(_POLL, lambda: False):
            try:
                control = Control(self.path("control"))
            except (ControlError, ControlGone):
                if time.monotonic() > deadline:
                    raise GuestTimeout("pyvmm did not start the guest in time", tail=self.said()) from None
                continue
            self._events = threading.Thread(target=self._record_events, args=(control,), daemon=True)
            self._events.start()
            return

    def request(self, do: str, **params: object) -> dict[str, Any]:
        """Ask it something. Raises ControlError when it refuses, ControlGone."""
        with Control(self.path("control")) as control:
            return control.request(do, **params)  # type: ignore[arg-type]  # patience is among them

    def write(self, data: bytes, limit: float) -> bool:
        """Type ``data`` on the console; whether it still takes any. Raises GuestTimeout."""
        deadline = time.monotonic() + limit
        poll = select.poll()
        poll.register(self._console, select.POLLOUT)
        while data:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise GuestTimeout(f"the guest did not read what was typed: {len(data)} bytes are left")
            try:
                data = data[self._console.send(data, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                continue
            except OSError:
                return False
        return True

    def said(self) -> list[str]:
        """What it said on stderr."""
        try:
            text = (self._folder / artifacts.SAID).read_text(errors="replace")
        except OSError:
            return []
        return visible(text).splitlines()

    def close(self) -> None:
        """End it at once, whatever state it is in."""
        if self._process.poll() is None:
            try:
                self.request("kill")
            except (ControlError, ControlGone):
                self._process.terminate()
        for last_word in (self._process.terminate, self._process.kill):
            try:
                self._process.wait(_KILL_PATIENCE)
                break
            except subprocess.TimeoutExpired:
                last_word()
        self._process.wait()
        self._pump.join()
        self._console.close()

    def _read(self) -> None:
        try:
            while data := self._next_output():
                self._log.feed(data)
                self._changed()
            self._process.wait()
            if self._events is not None:
                self._events.join(_EVENTS_PATIENCE)
        finally:
            self.end = self._explain(self._process.wait())
            self._log.end()
            self._changed()

    def _next_output(self) -> bytes:
        """What the guest prints next; nothing at its end. Takes no descriptor: there may be none left."""
        poll = select.poll()
        poll.register(self._console, select.POLLIN)
        while not poll.poll(_GLANCE * 1000):
            if self._process.poll() is not None:
                return b""  # what a helper of pyvmm holds open does not count once pyvmm itself is gone
        return _receive(self._console)

    def _record_events(self, control: Control) -> None:
        try:
            with control, artifacts.events(self._folder) as write:
                for event in control.events():
                    write(event)
                    if event.get("event") == "ended":
                        self._ended_event = event
        except (ControlError, ControlGone, OSError):
            pass  # it ended, or there is no room for its events

    def _explain(self, code: int) -> End:
        said = [line.removeprefix("pyvmm: ") for line in self.said() if line.startswith("pyvmm: ")]
        message = said[-1] if said else f"its pyvmm ended with status {code}"
        if code < 0:
            return End(LOST, code, f"its pyvmm was killed by {_signal_name(-code)}")
        reason = self._ended_event.get("reason") or _reason(code, message)
        if self._log.panic.seen and reason in (outcome.REBOOT, outcome.POWEROFF):
            reason = outcome.PANIC
        return End(reason, code, str(self._ended_event.get("message") or message))


def _reason(code: int, message: str) -> str:
    """Why a guest ended that was gone before its events could be had: by its pyvmm's last words."""
    if code == outcome.EXIT_OK and "reboot" in message:
        return outcome.REBOOT
    return _REASONS.get(code, outcome.SIGNAL)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # most of the real-time ones have no name


def _receive(console: socket.socket) -> bytes:
    try:
        return console.recv(65536)
    except OSError:
        return b""
