# SPDX-License-Identifier: Apache-2.0
"""A port of a virtio console on a unix socket."""

from __future__ import annotations

import _socket
import os
import select
import stat

from pyvmm.devices.console.stream import Interest, StreamPort
from pyvmm.errors import ConfigError
from pyvmm.hostfile import obstacle
from pyvmm.unixlistener import RETRY, UnixListener

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.virtio.session import ActiveQueue, Session

_PATH_LIMIT = 107  # bytes in sockaddr_un, without the final NUL


class UnixPort(StreamPort):
    """A port on a unix stream socket at ``path``, made with mode 0600. One client at a time is served.

    The next one is served when the guest has been told that the first has gone. Raises ConfigError.
    """

    def __init__(self, name: str, path: str, what: str = "") -> None:
        super().__init__(name)
        self._path = path
        self._listener = _listener(path, what or f"Port {name!r}")
        self._inode = os.stat(path).st_ino
        self._accepting = Interest()

    def attach(
        self, session: Session, rx: ActiveQueue, tx: ActiveQueue, on_change: Callable[[], None]
    ) -> None:
        """See Port."""
        super().attach(session, rx, tx, on_change)
        self._listen()

    def detach(self) -> None:
        """See Port."""
        self._accepting.stop()
        super().detach()

    def announced(self) -> None:
        """See Port. Not earlier, or the guest would take two clients for one."""
        self._listen()

    def _listen(self) -> None:
        if not self.open:
            self._accepting.start(self._session, self._listener.fileno(), self._acceptable, select.EPOLLIN)

    def _acceptable(self, _events: int) -> None:
        self._accepting.stop()
        client = None
        try:
            client = self._listener.accept()
            write_fd = -1 if client is None else os.dup(client)
        except OSError:  # no descriptor is free
            if client is not None:
                os.close(client)
            if self._session is not None:
                self._session.call_later(RETRY, self._listen)
            return
        if client is None:  # it has gone again
            self._listen()
        else:
            self.connect(client, write_fd)

    def close(self) -> None:
        """See Port. The socket's name goes, too, unless somebody else has it by now."""
        super().close()
        self._accepting.stop()
        self._listener.close()
        try:
            if os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)
        except OSError:
            pass
        self._inode = -1


def check_path(path: str, what: str) -> None:
    """Raise ConfigError where no socket can be, as far as that shows without making it."""
    if len(os.fsencode(path)) > _PATH_LIMIT:
        raise ConfigError(f"{what}: a socket's path has {_PATH_LIMIT} bytes at most: choose a shorter one.")
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(
                f"{what}: {path} exists and is not a socket: remove it, or choose another path."
            )
    except OSError:
        if problem := obstacle(path):
            raise ConfigError(f"{what}: cannot listen at {path}: {problem}.") from None


def _listener(path: str, what: str) -> UnixListener:
    check_path(path, what)
    try:
        _remove_stale(path, what)
        return UnixListener(path)
    except OSError as error:
        raise ConfigError(f"{what}: cannot listen at {path}: {error.strerror}.") from error


def _remove_stale(path: str, what: str) -> None:
    """Remove the socket that a program left behind which ended without cleaning up."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK)
    try:
        probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
        return
    except BlockingIOError:  # somebody listens, and many wait
        pass
    finally:
        probe.close()
    raise ConfigError(f"{what}: another program listens at {path}: end it, or choose another path.")
