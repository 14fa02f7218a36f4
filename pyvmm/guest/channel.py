# SPDX-License-Identifier: Apache-2.0
"""The connection to the agent: one thread that sends, receives and hands out frames.

The guest may send anything, in any order, or nothing, or never read. What is held for it is bounded: one
frame being received, a window for each output of each command, and what waits to be sent, which grows no
further once it is ``congested``.
"""

from __future__ import annotations

import os
import select
import threading

from pyvmm.guest import protocol
from pyvmm.guest.process import WINDOW, Process
from pyvmm.guest.protocol import GuestError, GuestGone, GuestProtocolError, Parser, frame
from pyvmm.threads import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Connection(Protocol):
        """A connected stream socket."""

        def fileno(self) -> int:
            """Its descriptor."""

        def setblocking(self, flag: bool, /) -> None:
            """Whether its calls wait."""

        def close(self) -> None:
            """Give it back."""


_READ_SIZE = 64 << 10
_CONGESTED = 256 << 10
_MOST_SESSIONS = 1024
_MOST_INPUT = 1 << 20


class Channel:
    """Owns ``connection`` from now on. ``changed`` is the lock of everything, and tells of every change."""

    def __init__(self, connection: Connection) -> None:
        connection.setblocking(False)
        self._connection = connection
        nonce = os.urandom(protocol.NONCE_SIZE)
        self._parser = Parser(nonce)
        hello = protocol.HELLO_PAYLOAD.pack(protocol.MAGIC, nonce, protocol.VERSION)
        self._out = bytearray(protocol.PREAMBLE + frame(protocol.HELLO, payload=hello))
        self._processes: dict[int, Process] = {}
        self._last = 0
        self._error: GuestGone | None = None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.changed = threading.Condition()
        self.ready = False
        self.sessions = self.input_window = self.spec_limit = 0
        self._thread = start_thread(self._main, "guest agent")

    @property
    def alive(self) -> bool:
        """Whether frames can still be sent."""
        return self._error is None

    @property
    def congested(self) -> bool:
        """Whether so much waits to be sent that neither input nor commands should be added."""
        return len(self._out) > _CONGESTED

    def check(self) -> None:
        """Raise why the connection has ended, if it has."""
        if self._error is not None:
            raise self._error

    def wait(self, timeout: float | None = None) -> None:
        """Wait, with the lock held, until something changes. Raises GuestGone when nothing will."""
        self.check()
        # Not for ever at a time: a signal that came just before would not be handled until then.
        self.changed.wait(1.0 if timeout is None else min(timeout, 1.0))

    def send(self, data: bytes) -> None:
        """Send frames; with the lock held. Raises GuestGone."""
        self.check()
        self._out += data
        os.eventfd_write(self._wake, 1)

    def start(self, what: str, spec: bytes, kind: int, *, flags: int = 0, mode: int = 0) -> Process:
        """Begin a command or a copy. Raises GuestError when it is too long, or there are too many."""
        with self.changed:
            self.check()
            if len(spec) > self.spec_limit:
                raise GuestError(
                    f"{what}: command and environment may have {self.spec_limit} bytes, not {len(spec)}."
                )
            if len(self._processes) >= self.sessions:
                raise GuestError(
                    f"The guest's agent runs {self.sessions} commands at a time; wait for one of them."
                )
            while not self._last or self._last in self._processes:
                self._last = (self._last + 1) & 0xFFFF
            number = self._last
            self._last = (number + 1) & 0xFFFF
            process = self._processes[number] = Process(self, number, what)
            for at in range(0, len(spec), protocol.MAX_PAYLOAD):
                self.send(frame(protocol.SPEC, number, spec[at : at + protocol.MAX_PAYLOAD]))
            payload = protocol.START_PAYLOAD.pack(kind, flags, mode, WINDOW, WINDOW)
            self.send(frame(protocol.START, number, payload))
            return process

    def abort(self, reason: str) -> None:
        """End the connection; whoever waits gets GuestGone with this sentence."""
        self._fail(GuestGone(reason))

    def _fail(self, error: GuestGone) -> None:
        with self.changed:
            if self._error is None:
                self._error = error
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)
            self.changed.notify_all()

    def close(self) -> None:
        """End the connection and its thread. Idempotent."""
        self.abort("The connection to the guest was closed.")
        self._thread.join()

    # The thread

    def _main(self) -> None:
        try:
            while self._error is None:
                self._turn()
        except GuestGone as error:
            self._fail(error)
        except OSError as error:
            self._fail(GuestGone(f"The connection to the guest was lost: {error.strerror}."))
        finally:
            with self.changed:
                self._connection.close()
                os.close(self._wake)
                self._wake = -1

    def _turn(self) -> None:
        poll = select.poll()
        fd = self._connection.fileno()
        poll.register(fd, select.POLLIN | (select.POLLOUT if self._out else 0))
        poll.register(self._wake, select.POLLIN)
        for ready, events in poll.poll():
            if ready == self._wake:
                os.eventfd_read(self._wake)
                continue
            if events & select.POLLOUT:
                self._write(fd)
            if events & ~select.POLLOUT:
                self._read(fd)

    def _write(self, fd: int) -> None:
        with self.changed:
            try:
                count = os.write(fd, self._out[:_READ_SIZE])
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):  # it may have said something before: reading ends
                count = len(self._out)
            was_congested = self.congested
            del self._out[:count]
            if was_congested and not self.congested:
                for process in self._processes.values():
                    process.grant()
                self.changed.notify_all()

    def _read(self, fd: int) -> None:
        try:
            data = os.read(fd, _READ_SIZE)
        except BlockingIOError:
            return
        if not data:
            raise GuestGone("The guest closed the connection to its agent, or ended.")
        with self.changed:
            for kind, stream, session, payload in self._parser.feed(data):
                self._take(kind, stream, session, payload)
            self.changed.notify_all()

    def _take(self, kind: int, stream: int, session: int, payload: bytes) -> None:
        if kind == protocol.READY:
            self._begin(payload)
            return
        process = self._processes.get(session)
        if process is None:
            raise GuestProtocolError("The guest's agent spoke of a command that does not run.")
        if kind == protocol.OUTPUT:
            process.came(stream - 1, payload)
        elif kind == protocol.TAKEN:
            process.taken(*protocol.NUMBER.unpack(payload))
        else:
            del self._processes[session]
            process.exited(*protocol.EXIT_PAYLOAD.unpack(payload))

    def _begin(self, payload: bytes) -> None:
        _, _, version, sessions, window, spec_limit = protocol.READY_PAYLOAD.unpack(payload)
        if version != protocol.VERSION:
            raise GuestProtocolError(
                f"The guest's agent speaks version {version} of its protocol, this pyvmm {protocol.VERSION}."
            )
        if self.ready or not sessions or not window:
            raise GuestProtocolError("The guest's agent broke its protocol when it began.")
        self.sessions = min(sessions, _MOST_SESSIONS)
        self.input_window = min(window, _MOST_INPUT)
        self.spec_limit = spec_limit
        self.ready = True
