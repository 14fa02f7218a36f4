# SPDX-License-Identifier: Apache-2.0
"""The guest's end of the agent's protocol, by docs/reference/agent-protocol.md: says what a test wants."""

from __future__ import annotations

import socket
import struct

from fakes.threads import PATIENCE

MAGIC = b"pyvmm\0\r\n"
HELLO, SPEC, START, INPUT, CREDIT, SIGNAL, POWEROFF = range(1, 8)
READY, OUTPUT, TAKEN, EXIT = range(17, 21)


def frame(kind: int, session: int = 0, payload: bytes = b"", stream: int = 0) -> bytes:
    return struct.pack("<BBHI", kind, stream, session, len(payload)) + payload


class FakeAgent:
    """``client`` is the socket for a Guest; the methods work the other end."""

    def __init__(self) -> None:
        self.client, self._end = socket.socketpair()
        self._end.settimeout(PATIENCE)
        self.nonce = b""

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._end.recv(size - len(data))
            assert piece, "the host hung up"
            data += piece
        return data

    def next(self) -> tuple[int, int, int, bytes]:
        """Type, stream, session and payload of the next frame from the host."""
        first = b"\0"
        while first == b"\0":
            first = self.read(1)
        kind, stream, session, length = struct.unpack("<BBHI", first + self.read(7))
        return kind, stream, session, self.read(length)

    def expect(self, kind: int) -> tuple[int, int, bytes]:
        """Stream, session and payload of the next frame, which is of this type."""
        found = self.next()
        assert found[0] == kind, found
        return found[1:]

    def hear_hello(self) -> None:
        payload = self.expect(HELLO)[2]
        assert payload[:8] == MAGIC
        self.nonce = payload[8:24]

    def ready_frame(self, *, version: int = 1, sessions: int = 16, window: int = 65536) -> bytes:
        numbers = struct.pack("<IIII", version, sessions, window, 65536)
        return frame(READY, payload=MAGIC + self.nonce + numbers)

    def begin(self, **numbers: int) -> None:
        self.hear_hello()
        self.send(self.ready_frame(**numbers))

    def expect_start(self) -> tuple[int, list[bytes], bytes]:
        """Session, description and START's payload of the next command; what earlier ones got is skipped."""
        spec = b""
        while (found := self.next())[0] != START:
            if found[0] == SPEC:
                spec += found[3]
        return found[2], spec.split(b"\0")[:-1], found[3]

    def send(self, data: bytes) -> None:
        self._end.sendall(data)

    def output(self, session: int, data: bytes, stream: int = 1) -> None:
        self.send(frame(OUTPUT, session, data, stream))

    def exit(self, session: int, value: int = 0, *, how: int = 0, stage: int = 0) -> None:
        self.send(frame(EXIT, session, struct.pack("<BBxxI", how, stage, value)))

    def hang_up(self) -> None:
        self._end.close()
