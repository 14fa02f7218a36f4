# SPDX-License-Identifier: Apache-2.0
"""The lab host as its users see it: build, start, run commands in it, stop.

One host per flavour and user. State lives in files (store.runtime_dir) under a lock, so any number of
processes share a host, and none of them has to stay: the connection's master ends after some idle time, and
then the host does.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

from pyvmm.errors import HostError
from pyvmm.lab import share, store, sync
from pyvmm.lab.image import Image, image
from pyvmm.lab.kernels import Kernel
from pyvmm.lab.qemu import FLAVOURS, Qemu, flavour
from pyvmm.lab.ssh import Connection, is_interactive, remote_command
from pyvmm.lab.store import Progress, quiet

IDLE = 600
"""Seconds without a session after which the connection ends."""
UNCONNECTED = 60
"""Seconds without a connection after which the host powers off."""
RUN_DIR = "/run/pyvmm"
"""Where guests in the lab have their sockets: in its own memory, since /tmp there is the machine's."""
_PASSED_ON = (
    "HOME",
    "USER",
    "CI",
    "NO_COLOR",
    "FORCE_COLOR",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "PYTEST_ADDOPTS",
)


class Lab:
    """The lab host of one flavour.

    Any thread and any process may call any method: what changes the host is serialised by a lock file.
    """

    def __init__(self, flavour_name: str = "aia", *, idle: int = IDLE) -> None:
        self.kind = flavour(flavour_name)
        self._idle = idle
        self._runtime = store.runtime_dir()
        self._qemu = Qemu(self.kind, self._runtime)
        self._state_file = self._runtime / f"{self.kind.name}.json"
        self._lock_file = self._runtime / f"{self.kind.name}.lock"

    def build(self, progress: Progress = quiet) -> dict[str, Any]:
        """Have all that a start needs in the cache; returns its manifest. Takes time only at first."""
        return image(self.kind.series, progress).manifest()

    def start(self, progress: Progress = quiet) -> None:
        """Have the host running and connected. Builds what is missing; does nothing when all is well.

        Raises HostError when it cannot be had.
        """
        with self._locked(progress):
            state = self._state()
            if state and self._connection(state).alive():
                self._attach_new(state)
            elif not (state and self._reconnect(state)):
                self._start(progress)

    def stop(self) -> bool:
        """End the host and all that runs in it, and remove its files; returns whether there was one."""
        with self._locked():
            state = self._state()
            if state:
                self._connection(state).close()
            running = bool(self._qemu.identity()[1])
            self._qemu.stop()
            for path in (self._state_file, self._qemu.console, self._lock_file):
                path.unlink(missing_ok=True)
        return running

    def status(self) -> dict[str, Any]:
        """``running``, then ``pid``, ``port``, ``kernel``, ``connected``, ``warm``, ``uptime``.

        Of a host that does not run: ``starting``, whether it is being built or booted.
        """
        state = self._state()
        found: dict[str, Any] = {"flavour": self.kind.name, "running": bool(state)}
        if not state:
            found["starting"] = store.is_locked(self._lock_file)
        else:
            found.update({name: state[name] for name in ("pid", "port", "warm", "kernel")})
            found.update(
                connected=self._connection(state).alive(), uptime=round(time.time() - state["started"])
            )
        return found

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        tty: bool | None = None,
        stdin: int | IO[bytes] | None = None,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        environment: Mapping[str, str] | None = None,
        distributions: Sequence[str] = (),
        progress: Progress = quiet,
    ) -> int:
        """Run a command in the lab as if it ran here, and return its exit status.

        The status is 128 + N when signal N ended the command, and 125 when ``cwd`` does not exist in the lab.
        ``tty``: by default a terminal is made when standard input and output are terminals. ``python3 -m
        pyvmm`` there is the pyvmm that runs here. ``distributions`` are Python distributions of this
        interpreter to offer besides. Raises HostError when the lab, not the command, fails.
        """
        self.start(progress)
        command = self._command(argv, cwd, environment, distributions)
        terminal = is_interactive() and stdin is None and stdout is None if tty is None else tty
        return self._connected().run(command, tty=terminal, stdin=stdin, stdout=stdout, stderr=stderr)

    def popen(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        environment: Mapping[str, str] | None = None,
        distributions: Sequence[str] = (),
        **how: Any,
    ) -> subprocess.Popen[bytes]:
        """Start a command as ``run`` does, without a terminal and without waiting.

        ``how`` goes to subprocess.Popen. Killing the returned process ends the command in the lab.
        """
        self.start()
        return self._connected().popen(self._command(argv, cwd, environment, distributions), **how)

    def forward(self, local: Path | str, remote: str) -> None:
        """Make what listens in the lab reachable here: see Connection.forward. For a started host."""
        self._connected().forward(local, remote)

    @contextmanager
    def forwarding(self, pairs: Iterable[tuple[str, str]]) -> Iterator[None]:
        """``forward`` every pair for as long as the context lasts. Raises HostError."""
        undo: list[tuple[str, list[str]]] = []
        try:
            for local, remote in pairs:
                undo.append((local, self.cancel_command(local, remote)))
                self.forward(local, remote)
            yield
        finally:
            for local, command in undo:
                subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
                if local.startswith("/"):
                    Path(local).unlink(missing_ok=True)

    def cancel_command(self, local: Path | str, remote: str) -> list[str]:
        """The command, to be run here, that ends such a forwarding."""
        return self._connected().cancel_command(local, remote)

    def shell(self, progress: Progress = quiet) -> int:
        """An interactive shell in the lab."""
        return self.run(["sh", "-l"], tty=is_interactive(), progress=progress)

    def console_text(self) -> str:
        """What the host printed on its serial console."""
        return self._qemu.console_text()

    def _locked(self, progress: Progress = quiet) -> AbstractContextManager[None]:
        return store.locked(self._lock_file, lambda: progress("waiting for another start of the lab"))

    def _state(self) -> dict[str, Any] | None:
        """What start recorded, if that process is still the one that runs."""
        state: dict[str, Any] | None = store.read_json(self._state_file)
        alive = state and self._qemu.identity() == (state["pid"], state["start_time"]) and state["start_time"]
        return state if alive else None

    def _image(self, state: Mapping[str, Any]) -> Image:
        return Image(Path(state["image"]), Kernel(Path(state["kernel_directory"])))

    def _connection(self, state: Mapping[str, Any]) -> Connection:
        return Connection(self._image(state), state["port"], self._runtime / f"{self.kind.name}.ssh")

    def _connected(self) -> Connection:
        state = self._state()
        if not state:
            raise HostError("The lab host went away before the command ran.")
        return self._connection(state)

    def _start(self, progress: Progress) -> None:
        host_image = image(self.kind.series, progress)
        self._qemu.stop()
        if self._qemu.restore(host_image, UNCONNECTED):
            if self._connect_first(host_image, warm=True):
                return
            progress("the saved state of the lab host does not work; booting it anew")
            self._qemu.stop()
            self._qemu.forget(host_image, UNCONNECTED)
        progress(f"booting the lab host ({self.kind.name})")
        self._qemu.start(host_image, UNCONNECTED)
        try:
            self._qemu.save(host_image, UNCONNECTED)
        except HostError as e:
            progress(f"the next start will be slow: {e}")
        if not self._connect_first(host_image, warm=False):
            raise HostError(
                f"The lab host booted but cannot be reached; its console is in {self._qemu.console}."
            )

    def _connect_first(self, host_image: Image, *, warm: bool) -> bool:
        """Connect to a host that was just started, and record it."""
        pid, started = self._qemu.identity()
        try:
            state = {
                "pid": pid,
                "start_time": started,
                "port": self._qemu.ssh_port(),
                "image": str(host_image.directory),
                "kernel_directory": str(host_image.kernel.directory),
                "kernel": host_image.kernel.release,
                "warm": warm,
                "started": time.time(),
                "attached": [],
            }
        except (HostError, OSError):
            return False
        return self._reconnect(state)

    def _reconnect(self, state: dict[str, Any]) -> bool:
        """Connect to a running host, set its clock, and give it what is new of the machine's files."""
        plan = share.plan(self._image(state).paths).without(state["attached"])
        mount = f"[ -d /machine/proc ] || {share.MOUNT} || exit 1\n"
        script = f"date -s @{int(time.time())} >/dev/null\n{mount}{plan.script()}"
        try:
            self._connection(state).open(script, self._idle)
        except (HostError, subprocess.TimeoutExpired):
            return False
        state["attached"] += plan.paths()
        self._record(state)
        return True

    def _attach_new(self, state: dict[str, Any]) -> None:
        """Directories made at the machine's top since the last session appear in the lab too."""
        names = {name for name, _ in share.list_directory("/")}
        if names <= set(state["top"]):
            return
        plan = share.plan(self._image(state).paths).without(state["attached"])
        if plan.paths() and self._connection(state).run(plan.script(), tty=False, stdin=subprocess.DEVNULL):
            raise HostError("The machine's new top-level directories cannot be had in the lab.")
        state["attached"] += plan.paths()
        self._record(state)

    def _record(self, state: dict[str, Any]) -> None:
        state["top"] = [name for name, _ in share.list_directory("/")]
        store.write_json(self._state_file, state)

    def _command(
        self,
        argv: Sequence[str],
        cwd: str | None,
        environment: Mapping[str, str] | None,
        distributions: Sequence[str],
    ) -> str:
        packages = [sync.pack((), with_pyvmm=True)]
        if distributions:
            packages.append(sync.pack(distributions, with_pyvmm=False))
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        passed.update({name: value for name, value in os.environ.items() if name.startswith("PYVMM_")})
        passed["PYVMM_RUN_DIR"] = RUN_DIR
        passed["LANG"] = "C.UTF-8"
        passed["PYTHONPATH"] = ":".join(f"/run/lab/python/{name}" for _, name in packages)
        passed.update(environment or {})
        return remote_command(argv, cwd=cwd or os.getcwd(), environment=passed, packages=packages)


def stop_all() -> list[str]:
    """Stop every host of this user; returns the flavours that ran."""
    return [name for name in FLAVOURS if Lab(name).stop()]
