# SPDX-License-Identifier: Apache-2.0
"""A command in the guest: its input, its two outputs, and its end."""

from __future__ import annotations

import os
from errno import ENOENT
from time import monotonic

from pyvmm.guest import protocol
from pyvmm.guest.protocol import GuestProtocolError, GuestTimeout, frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.guest.channel import Channel

STDOUT, STDERR = 0, 1
#: Bytes of each output that may wait for whoever reads it.
WINDOW = 256 << 10


class _Output:
    """One output: what came and was not read, and how much more may come."""

    __slots__ = ("data", "ended", "owed", "window")

    def __init__(self) -> None:
        self.data = bytearray()
        self.window = WINDOW
        self.owed = 0  # read, and not yet granted anew
        self.ended = False


class Process:
    """A command that was started, or a file on its way. Any thread may call any method.

    Every method raises GuestGone when the guest ends first.
    """

    def __init__(self, channel: Channel, number: int, what: str) -> None:
        self._channel = channel
        self._id = number
        self._what = what
        self._outputs = (_Output(), _Output())
        self._input_window = channel.input_window
        self._in_flight = 0
        self._abandoned = False
        #: Its exit status, 128 + N when signal N killed it, 127 or 126 when it could not be run; None before.
        self.status: int | None = None
        #: Why it could not be run; empty when it could.
        self.failure = ""
        #: The errno of that.
        self.errno = 0

    def offer(self, data: memoryview) -> int:
        """Give it input, as much as it takes now; returns how much that was."""
        channel = self._channel
        with channel.changed:
            if self.status is not None:
                return len(data)  # nobody reads it
            size = 0 if channel.congested else min(len(data), self._input_window - self._in_flight)
            channel.check()
            for at in range(0, size, protocol.MAX_PAYLOAD):
                piece = bytes(data[at : min(size, at + protocol.MAX_PAYLOAD)])
                channel.send(frame(protocol.INPUT, self._id, piece))
            self._in_flight += size
            return size

    def write(self, data: bytes, deadline: float | None = None) -> None:
        """Give it all of ``data`` as input, and wait until it is on its way.

        Raises GuestTimeout at ``deadline``, a moment of ``time.monotonic``.
        """
        view = memoryview(data)
        with self._channel.changed:
            while view:
                view = view[self.offer(view) :]
                if view:
                    self._channel.wait(self.remaining(deadline))

    def close_input(self) -> None:
        """Its input ends here."""
        with self._channel.changed:
            if self.status is None:
                self._channel.send(frame(protocol.INPUT, self._id))

    def take(self, output: int) -> bytes:
        """What it wrote to STDOUT or STDERR since the last time; perhaps nothing."""
        with self._channel.changed:
            held = self._outputs[output]
            data = bytes(held.data)
            held.data.clear()
            held.owed += len(data)
            self.grant()
            return data

    def ended(self, output: int) -> bool:
        """Whether nothing more will come of this output, and everything was taken."""
        held = self._outputs[output]
        return held.ended and not held.data

    def read(self, output: int, deadline: float | None = None) -> bytes:
        """What it wrote to STDOUT or STDERR, as soon as there is some; nothing at the end of it.

        Raises GuestTimeout at ``deadline``, a moment of ``time.monotonic``.
        """
        with self._channel.changed:
            while not (data := self.take(output)) and not self.ended(output):
                self._channel.wait(self.remaining(deadline))
            return data

    def signal(self, number: int) -> None:
        """Send a signal to it and what it started."""
        with self._channel.changed:
            if self.status is None:
                self._channel.send(frame(protocol.SIGNAL, self._id, protocol.NUMBER.pack(number)))

    def abandon(self) -> None:
        """Kill it, and forget what it still has to say."""
        with self._channel.changed:
            self._abandoned = True
            for output in (STDOUT, STDERR):
                self.take(output)
            self.signal(9)

    def wait(self, timeout: float | None = None) -> int:
        """Its status, once it has ended. Raises GuestTimeout after ``timeout`` seconds."""
        deadline = None if timeout is None else monotonic() + timeout
        with self._channel.changed:
            while self.status is None:
                self._channel.wait(self.remaining(deadline))
            return self.status

    def remaining(self, deadline: float | None) -> float | None:
        """Seconds until ``deadline``. Raises GuestTimeout when there are none."""
        if deadline is None:
            return None
        rest = deadline - monotonic()
        if rest <= 0:
            raise GuestTimeout(f"{self._what} did not end in time.")
        return rest

    # From the channel's thread, with the lock held

    def came(self, output: int, data: bytes) -> None:
        """It wrote ``data``; nothing is the end. Raises GuestProtocolError for more than was granted."""
        held = self._outputs[output]
        if len(data) > held.window or held.ended:
            raise GuestProtocolError("The guest's agent sent more than it was allowed to.")
        held.window -= len(data)
        held.ended = not data
        if self._abandoned:
            held.owed += len(data)
            self.grant()
        else:
            held.data += data

    def grant(self) -> None:
        """Let the guest send as much as has been read. With the lock held, also by the channel."""
        channel = self._channel
        for stream, held in enumerate(self._outputs, 1):
            if held.owed >= WINDOW // 2 and not held.ended and channel.alive and not channel.congested:
                held.window += held.owed
                channel.send(frame(protocol.CREDIT, self._id, protocol.NUMBER.pack(held.owed), stream))
                held.owed = 0

    def taken(self, size: int) -> None:
        """So much of the input has been read. Raises GuestProtocolError when that cannot be."""
        if size > self._in_flight:
            raise GuestProtocolError("The guest's agent took more input than there was.")
        self._in_flight -= size

    def exited(self, how: int, stage: int, value: int) -> None:
        """It has ended, or was never begun."""
        for output in self._outputs:
            output.ended = True
        if how == protocol.FAILED:
            self.errno = value & 0xFFF
            missing = stage == protocol.PROGRAM and self.errno == ENOENT
            self.failure = self._sentence(stage)
            self.status = 127 if missing else 126
        else:
            self.status = 128 + (value & 0x7F) if how == protocol.KILLED else value & 0xFF

    def _sentence(self, stage: int) -> str:
        reason = os.strerror(self.errno)
        if stage == protocol.DIRECTORY:
            return f"{self._what} was not run: its working directory in the guest: {reason}."
        if stage == protocol.PROGRAM and self.errno == ENOENT:
            return f"{self._what} was not found in the guest."
        if stage in (protocol.PROGRAM, protocol.FILE):
            return f"{self._what}: {reason} (in the guest)."
        return f"{self._what} was not begun, for the guest refused: {reason}."
