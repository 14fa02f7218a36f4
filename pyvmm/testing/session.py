# SPDX-License-Identifier: Apache-2.0
"""What all tests of one pytest process share: the host of the guests, their sockets, their names."""

from __future__ import annotations

import codecs
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

import pytest

from pyvmm import profiles
from pyvmm.errors import ConfigError
from pyvmm.testing import artifacts
from pyvmm.testing.config import NOUNS, GuestConfig, from_markers
from pyvmm.testing.errors import visible
from pyvmm.testing.host import Host
from pyvmm.testing.leases import Leases
from pyvmm.testing.place import Place, choose
from pyvmm.testing.settings import Settings
from pyvmm.testing.trace import ALL_KINDS
from pyvmm.testing.vm import Frame, Vm

TIMEOUT = 30.0
"""Seconds to wait for anything by default, on hardware."""

# Removes the sockets, the forwardings and the leases of a session whose process was killed: the end of its
# standard input is how it hears of that. A session that ends by itself says so, and leaves only the folder.
_GUARDIAN = """trap '' HUP INT TERM
done=$(cat)
for undo in "$1"/*/undo; do [ -f "$undo" ] && sh "$undo"; done >/dev/null 2>&1
rm -rf "$1"
[ -n "$done" ] || exec "$2" -m pyvmm.testing.leases "$3"
"""


class Session:
    """One a process; made when the first test needs a guest. ``close`` leaves nothing behind."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.settings = Settings(config)
        self._count = 0
        self._vms: list[Vm] = []
        self._guardian: subprocess.Popen[bytes] | None = None

    @cached_property
    def sockets(self) -> Path:
        """The folder of this process's sockets, closed to others; short, as paths of sockets must be."""
        base = os.environ.get("XDG_RUNTIME_DIR", "")
        usable = 0 < len(base) < 40 and os.access(base, os.W_OK)
        folder = tempfile.mkdtemp(prefix="pyvmm-test-", dir=base if usable else "/tmp")
        self._guardian = subprocess.Popen(
            ["sh", "-c", _GUARDIAN, "sh", folder, sys.executable, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return Path(folder)

    @cached_property
    def place(self) -> Place:
        """Where the guests run."""
        return choose(self.settings.where, self.sockets)

    @cached_property
    def host(self) -> Host:
        """Facts about it; starts the lab."""
        return Host(self.place)

    @cached_property
    def leases(self) -> Leases:
        """What guests of several processes share there."""
        return Leases(self.place.name, self.host.memory, self.settings.max_parallel)

    @property
    def scale(self) -> float:
        """What time limits are multiplied by."""
        return self.settings.scale or self.host.scale

    def base_config(self, kernel: str | None) -> GuestConfig:
        """The guest of the options; Debian's kernel, with a shell, unless there is another."""
        settings = self.settings
        nouns: dict[str, object] = {}
        if settings.config_file or settings.profile:
            found = profiles.load(settings.config_file, settings.profile)
            nouns = {noun: value for noun, value in found.items() if noun in NOUNS}
        given = {"kernel": kernel, "initrd": settings.initrd, "mem": settings.mem, "cpus": settings.cpus}
        nouns.update((noun, value) for noun, value in given.items() if value is not None)
        return GuestConfig(**nouns)

    def require_guests(self) -> None:
        """Skip the test when guests cannot run; with --vmm-require-kvm the session has failed before."""
        if self.host.reason:
            pytest.skip(f"guests cannot run: {self.host.reason}")

    def make(self, node: pytest.Item | pytest.Collector, config: GuestConfig, *, traced: bool) -> Vm:
        """A guest for a test or a module, with its markers already in ``config``."""
        self.require_guests()
        self._count += 1
        name = f"{self.settings.worker or 'test'}-{os.getpid()}-{self._count}"
        folder = artifacts.new_folder(self.settings.artifacts, node.nodeid)
        marker = node.get_closest_marker("vmm_timeout")
        frame = Frame(
            place=self.place,
            leases=self.leases,
            sockets=self.sockets,
            scale=self.scale,
            timeout=float(marker.args[0]) if marker else TIMEOUT,
            allow_panic=node.get_closest_marker("vmm_allow_panic") is not None,
            trace=(self.settings.trace or ALL_KINDS) if traced else (self.settings.trace or ""),
            live=self._live() if self.settings.console == "live" and not self.settings.worker else None,
            show_tail=self.settings.console != "off",
        )
        vm = Vm(name, with_program(config), folder, frame)
        self._vms.append(vm)
        return vm

    def finish(self, vm: Vm) -> None:
        """End a guest."""
        vm.close()
        if vm in self._vms:
            self._vms.remove(vm)

    def _live(self) -> Callable[[bytes], None]:
        """Shows the output of one guest as it comes, however its letters are cut."""
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        writer = self._config.get_terminal_writer()
        return lambda data: writer.write(visible(decode(data)), flush=True)

    def close(self) -> None:
        """End whatever runs, and leave nothing behind."""
        for vm in list(self._vms):
            vm.close()
        if self._guardian is not None:
            self._guardian.communicate(b"done")
        artifacts.remove_empty(self.settings.artifacts)
        artifacts.remove_empty(self.settings.artifacts.parent)


def of(config: pytest.Config) -> Session:
    """The session of this process. A wrong option is one sentence of pytest's own."""
    session: Session | None = getattr(config, "_pyvmm_session", None)
    if session is None:
        try:
            session = Session(config)
        except ConfigError as error:
            raise pytest.UsageError(str(error)) from None
        config._pyvmm_session = session  # type: ignore[attr-defined]  # where the plugin looks without an import
    return session


def with_program(config: GuestConfig) -> GuestConfig:
    """``config`` with Debian's kernel, and what its devices need, when it names nothing to run."""
    if config.kernel is not None or config.firmware is not None:
        return config
    from pyvmm.cli import debian
    from pyvmm.cli.in_lab import no_progress

    values = config.values()
    debian.add(values, no_progress)
    return GuestConfig(**values)


def marked(base: GuestConfig, node: pytest.Item | pytest.Collector) -> GuestConfig:
    """``base`` with what the ``vmm`` markers of a test or module say, the nearest last."""
    markers: Iterable[pytest.Mark] = reversed(list(node.iter_markers("vmm")))
    return from_markers(base, [marker.kwargs for marker in markers])
