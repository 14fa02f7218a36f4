# SPDX-License-Identifier: Apache-2.0
"""Listening unix sockets that only their owner may connect to, for an event loop."""

from __future__ import annotations

import _socket
import os

_BACKLOG = 64
#: Seconds after which to look again at a client that could not be accepted: no descriptor was free.
RETRY = 0.1


class UnixListener:
    """A stream socket at ``path``, mode 0600. Neither it nor its clients block. Raises OSError."""

    def __init__(self, path: str) -> None:
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK)
        try:
            self._socket.bind(path)
            os.chmod(path, 0o600)  # nobody can connect before it listens
            self._socket.listen(_BACKLOG)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The descriptor, to be watched: readable when somebody waits to be accepted."""
        return self._socket.fileno()

    def accept(self) -> int | None:
        """The next client's descriptor, which is the caller's to close; None when nobody waits.

        Raises OSError when there is no descriptor for it: it goes on waiting.
        """
        try:
            fd, _ = self._socket._accept()  # type: ignore[attr-defined]  # there, but not declared
        except (BlockingIOError, ConnectionAbortedError):
            return None
        os.set_blocking(fd, False)
        return int(fd)

    def close(self) -> None:
        """Take no more clients. The name stays where it is. Idempotent."""
        self._socket.close()
