# SPDX-License-Identifier: Apache-2.0
"""virtiofsd (the one in Rust, https://gitlab.com/virtio-fs/virtiofsd) as a child process.

It is given a listening socket to which we are connected before it starts, so that there is nothing to wait
for, and nobody else to come first. It serves that one connection and ends when it is closed, however we
ended.
"""

from __future__ import annotations

import os
import select
import signal
import socket

from pyvmm.devices.vhost.user import VhostUser
from pyvmm.errors import ConfigError, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "virtiofsd"
#: Where distributions put it; not on PATH, because people do not start it by hand.
FOLDERS = ("/usr/libexec", "/usr/lib", "/usr/local/libexec")
_LISTENER = 3  # its number in the child
#: Milliseconds it has to end by itself when the connection is closed: it may have files to write.
_PATIENCE = 5000


class Virtiofsd:
    """A running virtiofsd. ``connection`` speaks to it."""

    def __init__(self, process: int, connection: VhostUser) -> None:
        self._process: int | None = process
        self.connection = connection

    def kill(self) -> None:
        """End it now; when this returns it does not touch guest memory any more. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            os.killpg(process, signal.SIGKILL)  # it does its work in a child, to be in namespaces of its own
            self.connection.wait_for_end()
            os.waitpid(process, 0)

    def close(self) -> None:
        """Hang up, and wait for its end. Idempotent."""
        self.connection.close()
        process = self._process
        if process is not None and _wait(process, _PATIENCE):
            self._process = None
        self.kill()


def start_virtiofsd(what: str, folder: str, *, writable: bool, program: str = PROGRAM) -> Virtiofsd:
    """Start it and agree with it on features. Raises ConfigError, with a sentence beginning with ``what``."""
    path = find_program(program)
    if path is None:
        raise ConfigError(
            f"{what} needs the program virtiofsd, which is not installed; on Debian: apt install virtiofsd. "
            "Or share the folder with --9p, which needs no other program."
        )
    arguments = ["--shared-dir", os.path.abspath(folder), "--xattr", "--log-level", "error"]
    arguments += [] if writable else ["--readonly"]
    try:
        listener, ours = connected_listener()
    except OSError as error:
        raise ConfigError(f"{what}: no socket can be made in {_folder()}: {error.strerror}.") from error
    with listener:
        try:
            process = _spawn(path, arguments, listener.fileno())
        except OSError as error:
            ours.close()
            raise ConfigError(f"{what}: {path} cannot be run: {error.strerror}.") from error
    try:
        return Virtiofsd(process, VhostUser(ours, PROGRAM))
    except HostError as error:
        ours.close()
        if not _wait(process, _PATIENCE):
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
        raise ConfigError(f"{what}: {path} did not start. {error} What it printed says more.") from error


def find_program(name: str) -> str | None:
    """Where a program is, on PATH or in FOLDERS."""
    for folder in (*os.get_exec_path(), *FOLDERS):
        path = os.path.join(folder, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def connected_listener() -> tuple[socket.socket, socket.socket]:
    """A listening socket that nobody can find, and the one connection to it. Raises OSError."""
    private = os.path.join(_folder(), f"pyvmm-{os.urandom(8).hex()}")
    os.mkdir(private, 0o700)
    path = os.path.join(private, "socket")
    listener, ours = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        listener.listen(1)
        ours.connect(path)
    except OSError:
        listener.close()
        ours.close()
        raise
    finally:
        if os.path.lexists(path):
            os.unlink(path)
        os.rmdir(private)
    return listener, ours


def _folder() -> str:
    return os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("TMPDIR") or "/tmp"


def _spawn(path: str, arguments: Sequence[str], listener: int) -> int:
    """Start it, in a process group of its own: a Ctrl-C at the terminal is not for it. Raises OSError."""
    return os.posix_spawn(
        path,
        [path, "--fd", str(_LISTENER), *arguments],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, listener, _LISTENER),  # also onto itself: it loses close-on-exec
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
        ],
        setpgroup=0,
        setsigmask=(),
        setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM),
    )


def _wait(process: int, patience: int) -> bool:
    """Wait for its end and collect it; False when it did not come within ``patience`` milliseconds."""
    fd = os.pidfd_open(process)
    try:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        if not poller.poll(patience):
            return False
    finally:
        os.close(fd)
    os.waitpid(process, 0)
    return True
