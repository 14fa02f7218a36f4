# SPDX-License-Identifier: Apache-2.0
"""Running guests by name: one folder each, with the guest's sockets, held by a lock for as long as it runs.

``<base>/<NAME>/lock`` is locked (flock) by the process that runs the guest, and holds its process id. The
kernel drops the lock when that process ends, however it ends; a folder whose lock is free is a stale one and
is removed by whoever sees it. Everybody who looks at or changes folders holds ``<base>/.lock`` meanwhile, so
a lock that is taken only to see whether it is free is never mistaken for a guest's.
"""

from __future__ import annotations

import fcntl
import os
import stat
from errno import EMFILE, ENFILE, ENOMEM

from pyvmm.errors import ConfigError, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from types import TracebackType

CONTROL_SOCKET = "control.sock"
CONSOLE_SOCKET = "console.sock"
AGENT_SOCKET = "agent.sock"

_LOCK = "lock"
_PF_EXITING = 0x4  # of the flags in /proc/PID/stat
_NAME_LIMIT = 40
# What a socket's address holds, without the final NUL; the longest name in a guest's folder comes off it.
_PATH_LIMIT = 107 - len("/console.sock.new")


class _Folder:
    """A guest's folder: its name and where it is."""

    __slots__ = ("folder", "name")

    def __init__(self, name: str, folder: str) -> None:
        self.name = name
        self.folder = folder

    def path(self, file: str) -> str:
        """The path of one of its files."""
        return os.path.join(self.folder, file)


class Instance(_Folder):
    """A name that this process holds. ``release`` gives it back; so does the end of the process."""

    __slots__ = ("_lock_fd",)

    def __init__(self, name: str, folder: str, lock_fd: int) -> None:
        super().__init__(name, folder)
        self._lock_fd = lock_fd

    def release(self) -> None:
        """Remove the folder with all that is in it, and let others have the name. Idempotent.

        What cannot be removed, for somebody changed the folder of all guests, stays.
        """
        if self._lock_fd < 0:
            return
        lock_fd, self._lock_fd = self._lock_fd, -1
        try:
            with _Locked(os.path.dirname(self.folder)):
                _remove(self.folder)
                os.close(lock_fd)
        except (ConfigError, OSError):
            os.close(lock_fd)


class Found(_Folder):
    """A running guest; ``pid`` is the process that runs it."""

    __slots__ = ("pid",)

    def __init__(self, name: str, folder: str, pid: int) -> None:
        super().__init__(name, folder)
        self.pid = pid


def base() -> str:
    """The folder of all guests' folders: $PYVMM_RUN_DIR, or one below $XDG_RUNTIME_DIR or /tmp."""
    if chosen := os.environ.get("PYVMM_RUN_DIR"):
        return os.path.abspath(chosen)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return os.path.join(runtime, "pyvmm-run")
    return f"/tmp/pyvmm-run-{os.getuid()}"


def check_name(name: str) -> str:
    """``name`` itself. Raises ConfigError when no guest can be called so."""
    if not _is_name(name):
        raise ConfigError(
            f"A guest cannot be called {name!r}: a name is up to {_NAME_LIMIT} letters, digits, '.', '_' and "
            "'-', and begins with a letter or digit."
        )
    return name


def _is_name(name: str) -> bool:
    fits = name.isascii() and 1 <= len(name) <= _NAME_LIMIT and name[0].isalnum()
    return fits and all(letter.isalnum() or letter in "._-" for letter in name)


def claim(name: str | None = None) -> Instance:
    """Hold ``name``, or the lowest free one of vm1, vm2 and so on.

    Raises ConfigError when a running guest has the name, HostError when the folder cannot be made.
    """
    if name is not None:
        check_name(name)
    try:
        return _claim(name)
    except OSError as error:
        raise HostError(
            f"The folder of running guests, {base()}, cannot be used: {error.strerror}; set PYVMM_RUN_DIR to "
            "another one.",
            error.errno or 0,
        ) from error


def _claim(name: str | None) -> Instance:
    where = base()
    os.makedirs(where, 0o700, exist_ok=True)
    with _Locked(where):
        taken = {found.name: found for found in _look(where)}
        chosen = name or _free_name(taken)
        if chosen in taken:
            raise ConfigError(
                f"A guest named {chosen} is running (process {taken[chosen].pid}); choose another --name, or "
                f"end it with: pyvmm stop {chosen}"
            )
        folder = os.path.join(where, chosen)
        if len(os.fsencode(folder)) > _PATH_LIMIT:
            raise ConfigError(f"{folder} is too long a name for sockets; set PYVMM_RUN_DIR to a shorter one.")
        _make(folder)
        lock_fd = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(lock_fd, b"%d\n" % os.getpid())
        return Instance(chosen, folder, lock_fd)


def _make(folder: str) -> None:
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        os.rmdir(folder)  # whoever made it was killed before there was a lock in it
        os.mkdir(folder, 0o700)


def _free_name(taken: dict[str, Found]) -> str:
    number = 1
    while f"vm{number}" in taken:
        number += 1
    return f"vm{number}"


def running() -> list[Found]:
    """Every guest of this user that runs now, by name. Removes what ended ones left behind.

    Raises ConfigError when the folder is somebody else's.
    """
    where = base()
    try:
        with _Locked(where):
            return _look(where)
    except FileNotFoundError:
        return []


def is_over(guest: Found) -> bool:
    """Whether ``guest`` has ended since it was found, or its process is ending. Raises ConfigError."""
    return _is_exiting(guest.pid) or all(found.name != guest.name for found in running())


def _is_exiting(pid: int) -> bool:
    """The kernel takes its time to free a killed guest's memory, and only then lets go of its lock."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:  # it has gone, and the lock with it; or it is in another container
        return False
    return fields[0] in (b"Z", b"X") or bool(int(fields[6]) & _PF_EXITING)


def find(name: str | None = None) -> Found:
    """The running guest ``name``; without a name, the only one there is. Raises ConfigError."""
    guests = {found.name: found for found in running()}
    return guests[pick(name, guests)]


def pick(name: str | None, names: Collection[str]) -> str:
    """The name among ``names`` that is meant by ``name``, or by none at all. Raises ConfigError."""
    if name is None:
        if not names:
            raise ConfigError("No guest is running; start one with pyvmm run.")
        if len(names) > 1:
            raise ConfigError(f"Several guests are running: name one of {', '.join(sorted(names))}.")
        return next(iter(names))
    check_name(name)
    if name not in names:
        from pyvmm.nearest import nearest

        hint = nearest(name, names) or " pyvmm ps lists those that are."
        raise ConfigError(f"No guest named {name} is running.{hint}")
    return name


class _Locked:
    """Holds the lock of the folder of all guests. Raises OSError, or ConfigError for somebody else's."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._fd = -1

    def __enter__(self) -> None:
        info = os.lstat(self._where)
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
            raise ConfigError(
                f"{self._where} is not a folder of this user; remove it, or set PYVMM_RUN_DIR to one that is."
            )
        if info.st_mode & 0o022:
            raise ConfigError(f"Others may write to {self._where}; close it with: chmod 700 {self._where}")
        self._fd = os.open(
            os.path.join(self._where, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)


def _look(where: str) -> list[Found]:
    guests = []
    for name in sorted(os.listdir(where)):
        folder = os.path.join(where, name)
        if not _is_guests(name, folder):
            continue
        pid = _holder(folder)
        if pid is None:
            _remove(folder)
        else:
            guests.append(Found(name, folder, pid))
    return guests


def _is_guests(name: str, folder: str) -> bool:
    """Whether it is the folder of a guest, running or not. Others may be there, with sockets of their own."""
    try:
        return (
            _is_name(name)
            and stat.S_ISDIR(os.lstat(folder).st_mode)
            and stat.S_ISREG(os.lstat(os.path.join(folder, _LOCK)).st_mode)
        )
    except OSError:
        return False


def _holder(folder: str) -> int | None:
    """The process that holds the folder's lock; 0 when it cannot be told; None when nobody does.

    Raises OSError when this process or the host cannot open one more file: that says nothing of the lock.
    """
    try:
        fd = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (EMFILE, ENFILE, ENOMEM):
            raise
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(fd, 20).strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(fd)
    return None


def _remove(folder: str) -> None:
    """Remove a guest's folder. Whatever else somebody put there stays, and the folder with it."""
    try:
        for name in os.listdir(folder):
            if name.endswith((".sock", ".sock.new")):
                os.unlink(os.path.join(folder, name))
        os.unlink(os.path.join(folder, _LOCK))  # last: without it nobody knows what the folder is
        os.rmdir(folder)
    except OSError:
        pass
