# SPDX-License-Identifier: Apache-2.0
"""The control protocol's lines (docs/reference/control-protocol.md): bytes to requests, answers to bytes."""

from __future__ import annotations

import json
from json.encoder import JSONEncoder
from math import inf
from types import NoneType

from pyvmm.errors import PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = 1
LINE_LIMIT = 1 << 20

_encode = JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class ProtocolError(PyvmmError):
    """A line that is no request; ``id`` is that of the request when it could be read."""

    def __init__(self, message: str, id: object = None) -> None:
        super().__init__(message)
        self.id = id


class Lines:
    """Cuts a stream of bytes into lines, holding little more than one longest line.

    A line that is too long comes out as None, once, and its rest is skipped.
    """

    __slots__ = ("_buffer", "_searched", "_skipping")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._skipping = False

    def feed(self, data: bytes) -> None:
        """More bytes have come. Take the lines before feeding more."""
        self._buffer += data

    def take(self) -> bytes | None:
        """The next whole line that is not empty, without its end; b"" when there is none yet."""
        while (end := self._buffer.find(b"\n", self._searched)) >= 0:
            line = bytes(self._buffer[:end]).strip()
            del self._buffer[: end + 1]
            self._searched = 0
            if self._skipping:
                self._skipping = False
            elif end > LINE_LIMIT:
                return None
            elif line:
                return line
        return self._rest()

    def _rest(self) -> bytes | None:
        """What to make of a beginning of a line."""
        self._searched = len(self._buffer)
        if self._searched <= LINE_LIMIT and not self._skipping:
            return b""
        self._buffer.clear()
        self._searched = 0
        was_skipping, self._skipping = self._skipping, True
        return b"" if was_skipping else None


class Request:
    """One request: ``do`` names it, ``params`` are its parameters, ``id`` comes back with the answer."""

    __slots__ = ("do", "id", "params")

    def __init__(self, do: str, params: dict[str, object], id: object) -> None:
        self.do = do
        self.params = params
        self.id = id


def parse(line: bytes | None) -> Request:
    """The request in a line that came from ``Lines``. Raises ProtocolError."""
    if line is None:
        raise ProtocolError(f"The line is longer than {LINE_LIMIT} bytes.")
    try:
        found = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"The line is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise ProtocolError('A request is an object such as {"do": "status"}.')
    id = found.pop("id", None)
    if not isinstance(id, (str, int, float, NoneType)) or id in (inf, -inf):
        raise ProtocolError('The "id" of a request is a string or a number.')
    do = found.pop("do", None)
    if not isinstance(do, str):
        raise ProtocolError('The request has no "do" that names what is wanted.', id)
    return Request(do, found, id)


def _no_number(word: str) -> object:
    raise ValueError(f"{word} is not a number")


def success(id: object, result: Mapping[str, object]) -> bytes:
    """The answer to a request that was carried out."""
    return message({"id": id, "ok": True, "result": result})


def failure(id: object, sentence: str) -> bytes:
    """The answer to a request that was not."""
    return message({"id": id, "ok": False, "error": sentence})


def message(found: Mapping[str, object]) -> bytes:
    """Any object as a line."""
    return _encode(found).encode() + b"\n"
