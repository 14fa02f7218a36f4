# SPDX-License-Identifier: Apache-2.0
"""What a guest in the lab listens on, in reach on this machine: published ports, and sockets of its ports."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Sequence

from pyvmm.devicelist import NOUNS, DeviceRequest, add
from pyvmm.devices.console.unixsocket import UnixPort
from pyvmm.devices.net.passt import publish_arguments
from pyvmm.errors import ConfigError

_KINDS = dict(NOUNS.values())
_OWN_DEVICES = "--device"
_numbers = itertools.count()  # of sockets, for all guests of this process
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Reach:
    """What the words of ``pyvmm run`` ask for that listens.

    ``words`` ask for the same in the lab, where sockets have names of their own; ``pairs`` lead there, as
    OpenSSH writes them: what is listened on here, what it reaches in the lab. ``unreachable`` are the
    published ports that cannot be had here: those for UDP.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.pairs: list[tuple[str, str]] = []
        self.unreachable: list[str] = []
        self._requests: list[DeviceRequest] = []
        end = self.words.index("--") if "--" in self.words else len(self.words)
        for place, word in enumerate(self.words[:end]):
            for request in self._asked_by(word):
                self._publish(request)
                self.words[place] = self._move_socket(request, word)

    def _asked_by(self, word: str) -> list[DeviceRequest]:
        """The device that ``word`` asks for, if it is one that may listen."""
        option, _, body = word.partition("=")
        kind = _KINDS.get(option, "")
        if option == _OWN_DEVICES:
            kind, _, body = body.partition(",")
        if kind not in ("net", "console"):
            return []
        add(self._requests, kind, body, word)
        return self._requests[-1:]

    def _publish(self, request: DeviceRequest) -> None:
        published = request.settings.text("publish") if request.kind == "net" else None
        arguments = publish_arguments(published)
        for option, value in zip(arguments[::2], arguments[1::2], strict=True):
            address, _, ports = value.rpartition("/")
            port = ports.partition(":")[0]
            if option == "-t" and address:
                self.pairs.append((_tcp(address, port), _tcp(_EVERYWHERE.get(address, address), port)))
            elif address:
                self.unreachable.append(port)

    def _move_socket(self, request: DeviceRequest, word: str) -> str:
        path = request.settings.text("unix") if request.kind == "console" else None
        if path is None:
            return word
        there = f"/run/lab/port-{os.getpid()}-{next(_numbers)}.sock"
        self.pairs.append((os.path.abspath(path), there))
        return word.replace(f"unix={path}", f"unix={there}")

    def check(self) -> None:
        """Raise ConfigError unless everything can be listened on. What a dead program left is removed."""
        for here, _ in self.pairs:
            if here.startswith("/"):
                UnixPort("", here, f"The socket {here}").close()
            else:
                _check_tcp(here)


def _tcp(address: str, port: str) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _check_tcp(here: str) -> None:
    address, _, port = here.rpartition(":")
    address = address.strip("[]")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, int(port)))
        except OSError as error:
            raise ConfigError(
                f"Port {port} cannot be published at {address}: {error.strerror}; choose another one."
            ) from error
