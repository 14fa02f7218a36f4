# SPDX-License-Identifier: Apache-2.0
"""A port of a virtio console on a unix socket."""

from __future__ import annotations

import os
import select
import socket
import stat

from pyvmm.devices.console.stream import Interest, StreamPort
from pyvmm.errors import ConfigError, HostError
from pyvmm.hostfile import obstacle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.virtio.session import ActiveQueue, Session

_BACKLOG = 16
_RETRY = 0.1  # seconds until a client that could not be accepted is looked at again
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
        try:
            client, _ = self._listener.accept()
        except OSError:  # it has gone again, or we have too many descriptors
            self._listen_later()
            return
        try:
            write_fd = os.dup(client.fileno())
        except OSError:
            client.close()
            self._listen_later()
            return
        self.connect(client.detach(), write_fd)

    def _listen_later(self) -> None:
        if self._session is not None:
            self._session.call_later(_RETRY, self._listen)

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


def _listener(path: str, what: str) -> socket.socket:
    """A listening socket that only its owner may connect to."""
    check_path(path, what)
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise HostError(f"Cannot make a socket: {error.strerror}.", error.errno or 0) from error
    try:
        _remove_stale(path, what)
        listener.bind(path)
        os.chmod(path, 0o600)  # nobody can connect before it listens
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"{what}: cannot listen at {path}: {error.strerror}.") from error
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: str, what: str) -> None:
    """Remove the socket that a program left behind which ended without cleaning up."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:  # somebody listens, and many wait
            pass
    raise ConfigError(f"{what}: another program listens at {path}: end it, or choose another path.")
