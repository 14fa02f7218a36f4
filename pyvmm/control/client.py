# SPDX-License-Identifier: Apache-2.0
"""The other end of control.sock: asking a running guest's pyvmm for something."""

from __future__ import annotations

import errno
import json
import socket
import time

from pyvmm.control.protocol import VERSION, message
from pyvmm.errors import HostError, PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Any

    Answer = dict[str, Any]

_PATIENCE = 30.0
_RETRY = 0.01
_READ_SIZE = 64 << 10
# A pyvmm that was stopped, or a file that is no pyvmm at all, must not fill our memory.
_LONGEST = 64 << 20


class ControlError(PyvmmError):
    """The guest's pyvmm refused a request; its sentence."""


class ControlGone(HostError):
    """Nobody answers: the guest's pyvmm has ended, or does not go on."""


class Control:
    """A connection to the control.sock at ``path``; a context manager, for one thread at a time.

    ``patience``: seconds to wait for an answer; None waits for ever. Raises ControlGone.
    """

    def __init__(self, path: str, *, patience: float | None = _PATIENCE) -> None:
        self._patience = patience
        self._numbers = 0
        self._received = bytearray()
        self._events: list[Answer] = []
        #: Whether ``take_events`` has seen the end of the connection.
        self.ended = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        deadline = self._deadline(patience)
        try:
            self._connect(path, deadline)
            #: What the server says first: ``pyvmm``, ``protocol``, ``name``, ``pid``.
            self.greeting = self._next(deadline)
        except OSError as error:
            self._socket.close()
            raise ControlGone(f"Nobody answers at {path}: {error.strerror}.", error.errno or 0) from error
        except BaseException:
            self._socket.close()
            raise
        self._check_greeting()

    def _connect(self, path: str, deadline: float | None) -> None:
        self._socket.settimeout(_left(deadline))
        while True:
            try:
                self._socket.connect(path)
                return
            except BlockingIOError as error:  # many others wait to be accepted
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, "it does not go on") from error
                time.sleep(_RETRY)

    def _check_greeting(self) -> None:
        if self.greeting.get("protocol") == VERSION:
            return
        self._socket.close()
        raise ControlError(
            str(
                self.greeting.get("error")
                or f"That guest's pyvmm speaks protocol {self.greeting.get('protocol')}, this one {VERSION}."
            )
        )

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor, to be waited for."""
        return self._socket.fileno()

    def request(self, do: str, *, patience: float | None = None, **params: object) -> Answer:
        """Ask for ``do`` and return the result. ``patience``: seconds to wait, if not the usual ones.

        Raises ControlError when it is refused, ControlGone when no answer comes.
        """
        self._numbers += 1
        deadline = self._deadline(self._patience if patience is None else patience)
        try:
            self._socket.settimeout(_left(deadline))
            self._socket.sendall(message({"id": self._numbers, "do": do, **params}))
        except OSError as error:
            raise ControlGone("The guest's pyvmm has ended.", error.errno or 0) from error
        while True:
            answer = self._next(deadline)
            if "event" in answer:
                self._events.append(answer)
            elif answer.get("id") == self._numbers:
                return self._result(answer)

    def _result(self, answer: Answer) -> Answer:
        if not answer.get("ok"):
            raise ControlError(str(answer.get("error", "The request was refused.")))
        result = answer.get("result")
        return result if isinstance(result, dict) else {}

    def events(self, patience: float | None = None) -> Iterator[Answer]:
        """Events as they come, until the server ends the connection.

        ``patience``: seconds to wait for each; None waits for ever. Raises ControlGone when none comes.
        """
        self.request("events")
        yield from self.more_events(patience)

    def more_events(self, patience: float | None = None) -> Iterator[Answer]:
        """Further events, once they were asked for."""
        while True:
            if self._events:
                yield self._events.pop(0)
                continue
            try:
                answer = self._next(self._deadline(patience))
            except ControlGone as error:
                if error.errno:
                    raise
                return
            if "event" in answer:
                yield answer

    def take_events(self) -> list[Answer]:
        """The events that have come by now, without waiting: for those who wait for ``fileno``."""
        self._socket.settimeout(0)
        try:
            while data := self._socket.recv(_READ_SIZE):
                self._received += data
            self.ended = True
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.ended = True
        events, self._events = self._events, []
        while b"\n" in self._received:
            answer = self._next(None)
            if "event" in answer:
                events.append(answer)
        return events

    def wait_closed(self, seconds: float) -> bool:
        """Wait for the server to end the connection, which it does when the guest has gone: did it?"""
        deadline = self._deadline(seconds)
        try:
            while True:
                self._next(deadline)
        except ControlGone as error:
            return not error.errno

    def _deadline(self, seconds: float | None) -> float | None:
        return None if seconds is None else time.monotonic() + seconds

    def _next(self, deadline: float | None) -> Answer:
        """The next line. Raises ControlGone: with errno 0 when the server has ended the connection."""
        while (end := self._received.find(b"\n")) < 0:
            self._socket.settimeout(_left(deadline))
            try:
                data = self._socket.recv(_READ_SIZE)
            except TimeoutError as error:
                raise ControlGone("The guest's pyvmm does not answer.", errno.ETIMEDOUT) from error
            except ConnectionResetError:
                data = b""
            if not data or len(self._received) > _LONGEST:
                raise ControlGone("The guest's pyvmm has ended.")
            self._received += data
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ControlError("What answers there is not pyvmm.")
        return found


def _left(deadline: float | None) -> float | None:
    """Seconds until ``deadline``; never 0, which would mean not to wait at all, as another kind of error."""
    return None if deadline is None else max(0.001, deadline - time.monotonic())
