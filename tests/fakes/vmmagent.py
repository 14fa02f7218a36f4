# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the guest's agent: runs commands on this machine, keeps files in a folder. One client."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable

from pyvmm.guest import protocol
from pyvmm.guest.protocol import HEADER, frame


class FakeAgent:
    """Serves ``connection`` until it is closed; ``root`` is the guest's file system.

    The command ``hangup`` closes its port, as a guest does whose agent was killed; the file ``/stuck`` is
    one that nobody comes to the end of.
    """

    def __init__(self, connection: socket.socket, root: str, power_off: Callable[[], None]) -> None:
        self._connection = connection
        self._stream = connection.makefile("rb")
        self._root = root
        self._power_off = power_off
        self._spec: dict[int, bytes] = {}
        self._kind: dict[int, int] = {}
        self._input: dict[int, bytes] = {}

    def serve(self) -> None:
        kind = 0
        while not kind:  # zeros between frames
            byte = self._stream.read(1)
            if not byte:
                return
            kind = byte[0]
        self._greet(byte + self._stream.read(HEADER.size - 1))
        while header := self._stream.read(HEADER.size):
            kind, _, session, length = HEADER.unpack(header)
            self._take(kind, session, self._stream.read(length))

    def _greet(self, header: bytes) -> None:
        *_, length = HEADER.unpack(header)
        magic, nonce, version = protocol.HELLO_PAYLOAD.unpack(self._stream.read(length))
        ready = protocol.READY_PAYLOAD.pack(magic, nonce, version, 8, 1 << 16, 1 << 16)
        self._connection.sendall(frame(protocol.READY, 0, ready))

    def _take(self, kind: int, session: int, payload: bytes) -> None:
        if kind == protocol.SPEC:
            self._spec[session] = self._spec.get(session, b"") + payload
        elif kind == protocol.START:
            self._kind[session] = protocol.START_PAYLOAD.unpack(payload)[0]
            self._input[session] = b""
        elif kind == protocol.INPUT and payload:
            self._input[session] += payload
        elif kind == protocol.INPUT and session in self._kind:
            self._perform(session)
        elif kind == protocol.POWEROFF:
            self._power_off()

    def _perform(self, session: int) -> None:
        words = [word[1:].decode() for word in self._spec.pop(session).split(b"\0") if word[:1] == b"a"]
        kind, data = self._kind.pop(session), self._input.pop(session)
        path = os.path.join(self._root, words[0].lstrip("/"))
        status, outputs = 0, (b"", b"")
        if words == ["hangup"]:
            self._connection.shutdown(socket.SHUT_RDWR)
            return
        if words == ["/stuck"]:
            return
        if kind == protocol.PUT:
            with open(path, "wb") as file:
                file.write(data)
        elif kind == protocol.GET:
            with open(path, "rb") as file:
                outputs = (file.read(), b"")
        else:
            done = subprocess.run(words, input=data, capture_output=True, check=False, cwd=self._root)
            status, outputs = done.returncode, (done.stdout, done.stderr)
        for stream, output in enumerate(outputs, 1):
            if output:
                self._connection.sendall(frame(protocol.OUTPUT, session, output, stream))
            self._connection.sendall(frame(protocol.OUTPUT, session, b"", stream))
        end = protocol.EXIT_PAYLOAD.pack(protocol.EXITED, 0, status)
        self._connection.sendall(frame(protocol.EXIT, session, end))
