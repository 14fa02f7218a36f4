# SPDX-License-Identifier: Apache-2.0
"""Commands and files in a guest, through its agent.

    guest = Guest.connect("/run/user/1000/pyvmm/vm1/agent.sock")
    guest.wait_ready(60)
    guest.run("uname -a").stdout

Any thread may use a Guest, several at once. Nothing that a guest does raises anything but GuestError, or
makes the host hold more than ``limit`` bytes of a command's output.
"""

from __future__ import annotations

import os
from time import monotonic

from pyvmm.errors import ConfigError
from pyvmm.guest import protocol
from pyvmm.guest.channel import Channel
from pyvmm.guest.process import STDERR, STDOUT, Process
from pyvmm.guest.protocol import GuestError, GuestTimeout, frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from pyvmm.guest.channel import Connection

OUTPUT_LIMIT = 64 << 20
"""Bytes of output that ``run`` and ``get`` collect unless they are told otherwise."""
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "TERM": "linux",
}
"""What every command finds in its environment, unless it is given something else."""

_PIECE = 1 << 20


class Completed:
    """A command that has ended. ``failure`` says why it could not be run; it is empty when it was."""

    __slots__ = ("failure", "status", "stderr", "stdout")

    def __init__(self, status: int, stdout: bytes, stderr: bytes, failure: str = "") -> None:
        self.status = status
        self.stdout = stdout
        self.stderr = stderr
        self.failure = failure

    def __repr__(self) -> str:
        return f"Completed(status={self.status}, stdout={self.stdout!r}, stderr={self.stderr!r})"


class Guest:
    """The agent at the other end of ``connection``, a connected stream socket, which becomes the Guest's.

    A context manager; leaving it closes the connection, which ends the commands that still run.
    """

    def __init__(self, connection: Connection) -> None:
        self._channel = Channel(connection)

    @classmethod
    def connect(cls, path: str) -> Guest:
        """The guest whose agent's socket is at ``path``. Raises ConfigError when nobody listens there."""
        from socket import AF_UNIX, socket

        connection = socket(AF_UNIX)
        try:
            connection.connect(path)
        except OSError as error:
            connection.close()
            raise ConfigError(f"No guest's agent can be reached at {path}: {error.strerror}.") from error
        return cls(connection)

    def __enter__(self) -> Guest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._channel.close()

    def abort(self, reason: str) -> None:
        """Make every call, also those that wait, raise GuestGone with this sentence. From any thread."""
        self._channel.abort(reason)

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the agent answers, and has read most of what it was sent, for ``timeout`` seconds.

        Raises GuestTimeout, GuestGone.
        """
        deadline = _deadline(timeout)
        channel = self._channel
        with channel.changed:
            while not channel.ready or channel.congested:
                rest = None if deadline is None else deadline - monotonic()
                if rest is not None and rest <= 0:
                    raise GuestTimeout(f"The guest's agent did not answer within {timeout:g} s.")
                channel.wait(rest)

    def start(
        self,
        command: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        new_root: bool = False,
        timeout: float | None = None,
    ) -> Process:
        """Start a command (a str is for ``/bin/sh -c``), and return at once; its streams are the caller's.

        An agent that does not answer yet, or does not read, is waited for, for ``timeout`` seconds.
        ``env`` is added to ENVIRONMENT. ``cwd`` is / unless given. ``new_root``: it begins once the guest's
        init has left the initramfs. Raises GuestError, GuestTimeout.
        """
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        if not words or not words[0]:
            raise ConfigError("There is no command to run in the guest.")
        variables = [f"{name}={value}" for name, value in {**ENVIRONMENT, **(env or {})}.items()]
        tagged = [("a", words), ("e", variables), ("d", [] if cwd is None else [cwd])]
        spec = b"".join(_string(tag, text) for tag, texts in tagged for text in texts)
        what = command if isinstance(command, str) else words[0]
        flags = protocol.NEW_ROOT if new_root else 0
        return self._begin(what, spec, protocol.RUN, flags=flags, timeout=timeout)

    def run(
        self,
        command: str | Sequence[str],
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout: float | None = None,
        limit: int = OUTPUT_LIMIT,
    ) -> Completed:
        """Run a command to its end, with ``input`` as its standard input.

        After ``timeout`` seconds it is killed and GuestTimeout raised; GuestError, when it puts out more than
        ``limit`` bytes. What it leaves running in the background goes on, without its outputs.
        """
        deadline = _deadline(timeout)
        process = self.start(command, env=env, cwd=cwd, timeout=timeout)
        outputs = self._converse(process, input, deadline, limit)
        assert process.status is not None
        return Completed(process.status, *outputs, process.failure)

    def put(
        self,
        source: bytes | str | os.PathLike[str],
        target: str,
        *,
        mode: int | None = None,
        timeout: float | None = None,
    ) -> None:
        """Write a file in the guest: these bytes, or the file of the host of this name.

        ``mode`` is the host's file's unless given, or 0644. After ``timeout`` seconds it is given up. Raises
        GuestError, GuestTimeout, ConfigError.
        """
        deadline = _deadline(timeout)
        if isinstance(source, bytes):
            process = self._begin(
                target, _string("a", target), protocol.PUT, mode=_mode(mode, 0o644), timeout=timeout
            )
            rest = source
        else:
            process = self._send_file(source, target, mode, timeout)
            rest = b""
        self._converse(process, rest, deadline, OUTPUT_LIMIT)
        _check(process)

    def get(
        self,
        source: str,
        target: str | os.PathLike[str] | None = None,
        *,
        limit: int = OUTPUT_LIMIT,
        timeout: float | None = None,
    ) -> bytes:
        """The content of a file in the guest; with ``target``, written to that file of the host instead.

        Then any size will do, and the result is empty. After ``timeout`` seconds it is given up. Raises
        GuestError, GuestTimeout, ConfigError.
        """
        deadline = _deadline(timeout)
        process = self._begin(source, _string("a", source), protocol.GET, timeout=timeout)
        if target is None:
            data = self._converse(process, b"", deadline, limit)[STDOUT]
        else:
            data = b""
            self._save(process, target, deadline)
        _check(process)
        return data

    def power_off(self) -> None:
        """Power the guest off, its disks synchronised. Whatever runs in it is killed. Does not wait."""
        channel = self._channel
        with channel.changed:
            channel.send(frame(protocol.POWEROFF))

    def _begin(
        self,
        what: str,
        spec: bytes,
        kind: int,
        *,
        flags: int = 0,
        mode: int = 0,
        timeout: float | None = None,
    ) -> Process:
        with self._channel.changed:  # so that no other command comes between
            self.wait_ready(timeout)
            return self._channel.start(what, spec, kind, flags=flags, mode=mode)

    def _converse(
        self, process: Process, data: bytes, deadline: float | None, limit: int
    ) -> tuple[bytes, bytes]:
        """Feed a process and collect what it says, until its end."""
        rest = memoryview(data)
        outputs = (bytearray(), bytearray())
        open_input = True
        channel = self._channel
        try:
            with channel.changed:
                while True:
                    rest = rest[process.offer(rest) :]
                    if open_input and not rest:
                        process.close_input()
                        open_input = False
                    for output in (STDOUT, STDERR):
                        outputs[output].extend(process.take(output))
                    if sum(map(len, outputs)) > limit:
                        raise GuestError(f"A command in the guest put out more than {limit} bytes.")
                    if process.status is not None:
                        return bytes(outputs[STDOUT]), bytes(outputs[STDERR])
                    channel.wait(process.remaining(deadline))
        except GuestError:
            if channel.alive:
                process.abandon()
            raise

    def _send_file(
        self, source: str | os.PathLike[str], target: str, mode: int | None, timeout: float | None
    ) -> Process:
        deadline = _deadline(timeout)
        process = None
        try:
            with open(source, "rb") as file:
                mode = _mode(mode, os.fstat(file.fileno()).st_mode)
                process = self._begin(target, _string("a", target), protocol.PUT, mode=mode, timeout=timeout)
                while data := file.read(_PIECE):
                    process.write(data, deadline)
        except GuestTimeout:
            if process is not None:
                process.abandon()
            raise
        except OSError as error:
            if process is not None:
                process.abandon()
            raise ConfigError(f"{os.fspath(source)} cannot be read: {error.strerror}.") from error
        return process

    def _save(self, process: Process, target: str | os.PathLike[str], deadline: float | None) -> None:
        process.close_input()
        try:
            with open(target, "wb") as file:
                while data := process.read(STDOUT, deadline):
                    file.write(data)
            process.wait(process.remaining(deadline))
        except GuestTimeout:
            process.abandon()
            raise
        except OSError as error:
            process.abandon()
            raise ConfigError(f"{os.fspath(target)} cannot be written: {error.strerror}.") from error


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else monotonic() + timeout


def _check(process: Process) -> None:
    if process.failure:
        raise GuestError(process.failure)
    if process.status:
        raise GuestError(f"The file was not copied: the agent's process ended with status {process.status}.")


def _mode(mode: int | None, default: int) -> int:
    return (default if mode is None else mode) & 0o7777


def _string(tag: str, text: str) -> bytes:
    encoded = os.fsencode(text)
    if b"\0" in encoded:
        raise ConfigError(f"A command for the guest cannot hold a NUL byte: {text!r}.")
    return tag.encode() + encoded + b"\0"
