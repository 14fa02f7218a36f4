# SPDX-License-Identifier: Apache-2.0
"""The way into the lab host: OpenSSH with one multiplexed connection that all sessions share."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import socket
import subprocess
import termios
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from pyvmm.errors import HostError
from pyvmm.lab import tools
from pyvmm.lab.image import Image

_SSH_FAILED = 255
_NO_DIRECTORY = 125
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class Connection:
    """The connection to one lab host; ``control`` is the socket of its master process."""

    def __init__(self, image: Image, port: int, control: Path) -> None:
        self._control = control
        self._options = _options(image, port, control)

    def open(self, script: str, idle: int) -> None:
        """Become the master, run ``script`` in the lab, and stay in the background.

        The master ends after ``idle`` seconds without a session.
        Raises HostError when the host cannot be reached or the script fails.
        """
        self._control.unlink(missing_ok=True)
        options = ["-o", "ControlMaster=yes", "-o", f"ControlPersist={idle}", "-o", "LogLevel=ERROR"]
        command = [*tools.command("ssh"), *options, *self._options, "lab", "exec sh -s"]
        done = subprocess.run(
            command,
            input=script,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
            timeout=120,
        )
        if done.returncode:
            raise HostError(f"The lab host cannot be set up: {done.stderr.strip() or 'no reason given'}.")

    def alive(self) -> bool:
        """Whether the master process is there."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(self._control))
            except OSError:
                return False
        return True

    def run(
        self,
        command: str,
        *,
        tty: bool,
        stdin: int | IO[bytes] | None = None,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> int:
        """Run a shell command and return its exit status (128 + N when signal N ended it).

        Raises HostError when the connection, not the command, failed.
        """
        with SavedTerminal():
            process = subprocess.Popen(
                [*self._session(tty), command],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call
            )
            status = _wait(process)
        if status == _SSH_FAILED and not self.alive():
            raise HostError("The lab host went away while the command ran.")
        return status if status >= 0 else 128 - status

    def popen(self, command: str, **how: Any) -> subprocess.Popen[bytes]:
        """Start a shell command without a terminal; keyword arguments are Popen's."""
        how["preexec_fn"] = die_with_parent
        return subprocess.Popen([*self._session(tty=False), command], **how)

    def forward(self, local: Path | str, remote: str) -> None:
        """Have the master listen at ``local``: who connects there reaches ``remote`` in the lab.

        Either is the path of a socket, or ADDRESS:PORT. Nobody need listen in the lab yet: until then,
        connections end at once. Raises HostError when the master cannot do it.
        """
        binding = ["-o", "StreamLocalBindUnlink=yes", "-o", "StreamLocalBindMask=0177"]
        command = [
            *tools.command("ssh"),
            *self._options,
            *binding,
            "-O",
            "forward",
            "-L",
            f"{local}:{remote}",
        ]
        done = subprocess.run(
            [*command, "lab"], capture_output=True, stdin=subprocess.DEVNULL, text=True, check=False
        )
        if done.returncode:
            reason = done.stderr.strip() or "no reason given"
            raise HostError(f"{remote} of the lab cannot be had as {local}: {reason}.")

    def cancel_command(self, local: Path | str, remote: str) -> list[str]:
        """The command that ends such a listening; whoever runs it removes the socket ``local`` as well."""
        return [*tools.command("ssh"), *self._options, "-O", "cancel", "-L", f"{local}:{remote}", "lab"]

    def close(self) -> None:
        """End the master and every session on it."""
        subprocess.run(
            [*tools.command("ssh"), *self._options, "-O", "exit", "lab"],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        self._control.unlink(missing_ok=True)

    def _session(self, tty: bool) -> list[str]:
        return [*tools.command("ssh"), "-tt" if tty else "-T", "-o", "LogLevel=QUIET", *self._options, "lab"]


class SavedTerminal:
    """Puts the terminal on standard input back as it was, whatever ssh left behind when it was killed."""

    def __enter__(self) -> None:
        try:
            self._saved = termios.tcgetattr(0)
        except (termios.error, OSError):
            self._saved = []

    def __exit__(self, *_: object) -> None:
        if self._saved:
            before = signal.signal(signal.SIGTTOU, signal.SIG_IGN) if _in_main_thread() else None
            try:
                termios.tcsetattr(0, termios.TCSANOW, self._saved)
            except (termios.error, OSError):
                pass  # the terminal is gone
            if before is not None:
                signal.signal(signal.SIGTTOU, before)


def remote_command(
    argv: Sequence[str], *, cwd: str, environment: Mapping[str, str], packages: Iterable[tuple[str, str]] = ()
) -> str:
    """The shell text that runs ``argv`` in the lab in directory ``cwd``.

    ``packages`` are (tar file, name) of Python packages to have in memory first. The shell stays as the
    parent, since ssh passes exit statuses only, and the shell turns a signal N into status 128 + N without a
    word of its own.
    """
    steps = [". /lib/lab/session"]
    steps += [
        f"[ -d /run/lab/python/{name} ] || /lib/lab/unpack {shlex.quote(tar)} {name} || exit 125"
        for tar, name in packages
    ]
    steps += [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    where = shlex.quote(cwd)
    missing = shlex.quote(f"pyvmm: the directory {cwd} is not in the lab")
    steps.append(f"cd {where} 2>/dev/null || {{ echo {missing} >&2; exit {_NO_DIRECTORY}; }}")
    steps.append("trap : HUP INT QUIT TERM")
    steps.append(f"exec 9>&2 2>/dev/null; (exec 2>&9 9>&-; exec {shlex.join(argv)}); exit $?")
    return "; ".join(steps)


def die_with_parent() -> None:
    """In a child before exec: be terminated when the parent is killed; ssh then restores the terminal."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _options(image: Image, port: int, control: Path) -> list[str]:
    settings = {
        "HostName": "127.0.0.1",
        "Port": port,
        "User": "root",
        "HostKeyAlias": "lab",
        "UserKnownHostsFile": image.known_hosts,
        "GlobalKnownHostsFile": "none",
        "StrictHostKeyChecking": "yes",
        "IdentityFile": image.client_key,
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "PreferredAuthentications": "publickey",
        "KexAlgorithms": "curve25519-sha256",
        "ControlPath": control,
        "ConnectTimeout": 30,
        "EscapeChar": "none",
        "ForwardAgent": "no",
        "ForwardX11": "no",
    }
    options = ["-F", "none"]
    for name, value in settings.items():
        options += ["-o", f"{name}={value}"]
    return options


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for ssh; a Ctrl-C that reached us reached it too, and ended it."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        return -signal.SIGINT
    except BaseException:
        process.kill()
        process.wait()
        raise


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def is_interactive() -> bool:
    """Whether both ends of the conversation are terminals."""
    return os.isatty(0) and os.isatty(1)
