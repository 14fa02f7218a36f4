# SPDX-License-Identifier: Apache-2.0
"""The agent's protocol, host side: frames and their bounds. docs/reference/agent-protocol.md describes it."""

from __future__ import annotations

from struct import Struct

from pyvmm.errors import PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = 1
MAGIC = b"pyvmm\0\r\n"
NONCE_SIZE = 16
MAX_PAYLOAD = 16384

HELLO, SPEC, START, INPUT, CREDIT, SIGNAL, POWEROFF = range(1, 8)
READY, OUTPUT, TAKEN, EXIT = range(17, 21)

RUN, PUT, GET = range(3)
NEW_ROOT = 1  # flag of START
EXITED, KILLED, FAILED = range(3)
RESOURCES, ROOT, DIRECTORY, PROGRAM, FILE = range(1, 6)

HEADER = Struct("<BBHI")  # type, stream, session, length of the payload
HELLO_PAYLOAD = Struct("<8s16sI")  # magic, nonce, version
READY_PAYLOAD = Struct(
    "<8s16sIIII"
)  # magic, nonce, version, sessions, window of input, length of a description
START_PAYLOAD = Struct("<BBxxIII")  # kind, flags, mode, windows of stdout and stderr
EXIT_PAYLOAD = Struct("<BBxxI")  # how, stage, status or signal or errno
NUMBER = Struct("<I")

#: Whatever frame the agent is in the middle of, this many zeros end it. Between frames it skips them.
PREAMBLE = bytes(MAX_PAYLOAD + HEADER.size)

_SYNC_LIMIT = 8 << 20  # bytes before READY: what earlier clients left in the pipe is less
_SIZES = {READY: READY_PAYLOAD.size, TAKEN: NUMBER.size, EXIT: EXIT_PAYLOAD.size}


class GuestError(PyvmmError):
    """What was asked of the guest was not done; the text says why."""


class GuestGone(GuestError):
    """The guest, or the way to it, is not there any more."""


class GuestTimeout(GuestError):
    """The guest did not do it in time."""


class GuestProtocolError(GuestGone):
    """What came from the guest breaks the protocol. The connection is closed."""


def frame(kind: int, session: int = 0, payload: bytes = b"", stream: int = 0) -> bytes:
    """One frame."""
    return HEADER.pack(kind, stream, session, len(payload)) + payload


class Parser:
    """Cuts what comes from the guest into frames. Holds at most one of them.

    Everything before the READY frame with ``nonce`` belongs to somebody else, and is skipped.
    """

    __slots__ = ("_buffer", "_nonce", "_skipped", "synchronised")

    def __init__(self, nonce: bytes) -> None:
        self._nonce = HEADER.pack(READY, 0, 0, READY_PAYLOAD.size) + MAGIC + nonce
        self._buffer = bytearray()
        self._skipped = 0
        self.synchronised = False

    def feed(self, data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
        """The frames that ``data`` completes: type, stream, session, payload. Raises GuestProtocolError."""
        self._buffer += data
        if not self.synchronised and not self._synchronise():
            return
        at = 0
        while len(self._buffer) - at >= HEADER.size:
            kind, stream, session, length = HEADER.unpack_from(self._buffer, at)
            _check(kind, stream, length)
            end = at + HEADER.size + length
            if len(self._buffer) < end:
                break
            yield kind, stream, session, bytes(self._buffer[at + HEADER.size : end])
            at = end
        del self._buffer[:at]

    def _synchronise(self) -> bool:
        at = self._buffer.find(self._nonce)
        self.synchronised = at >= 0
        cut = at if at >= 0 else max(0, len(self._buffer) - len(self._nonce))
        self._skipped += cut
        del self._buffer[:cut]
        if self._skipped > _SYNC_LIMIT:
            raise GuestProtocolError("What answers at the guest's agent port is not pyvmm's agent.")
        return self.synchronised


def _check(kind: int, stream: int, length: int) -> None:
    if kind == OUTPUT and stream in (1, 2) and length <= MAX_PAYLOAD:
        return
    if _SIZES.get(kind) != length:
        raise GuestProtocolError(
            f"The guest's agent broke its protocol: a frame of type {kind}, stream {stream}, {length} bytes."
        )
