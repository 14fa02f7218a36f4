# SPDX-License-Identifier: Apache-2.0
"""Which packages each build takes: those pinned in data/pins.json, else the archive's newest.

A pin names every package's file and its SHA-256, so neither an index nor its signature is needed: every lab
is made of the same packages, also while a mirror is being updated. It holds for one request: a build that
asks for something else takes the archive's newest until scripts/pin-packages was run.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyvmm.errors import HostError
from pyvmm.lab.packages import MIRROR_VARIABLE, Archive, Package, download, require_commands
from pyvmm.lab.store import Progress, quiet

SUITE = "trixie"
FILE = Path(__file__).parent / "data/pins.json"

Choose = Callable[[Archive, Sequence[str]], list[Package]]
"""Picks packages by names from an archive whose index is there."""


class Request:
    """What the build named ``build`` wants of the Debian archive.

    ``suites`` are tried in order; with each stands whether a Release file past its date will do.
    """

    def __init__(
        self,
        build: str,
        names: Sequence[str],
        choose: Choose = Archive.resolve,
        *,
        suites: Sequence[tuple[str, bool]] = ((SUITE, False),),
        architecture: str = "riscv64",
    ) -> None:
        self.build = build
        self._names = names
        self._choose = choose
        self._suites = suites
        self._architecture = architecture

    def __repr__(self) -> str:
        """All that decides what the packages are, pinned ones included: a part of the build's recipe."""
        return f"Request({self.build!r}, {self.wanted()}, {self.pin()})"

    def wanted(self) -> dict[str, object]:
        """The request as the pins keep it."""
        return {
            "architecture": self._architecture,
            "names": list(self._names),
            "suites": [list(suite) for suite in self._suites],
        }

    def pin(self) -> dict[str, Any] | None:
        """The suite and the packages that are pinned for just this request, as in a manifest."""
        pin = read().get(self.build, {})
        if pin.get("request") != self.wanted():
            return None
        return {"suite": pin["suite"], "packages": pin["packages"]}

    def fetch(self, scratch: Path, progress: Progress = quiet) -> tuple[list[Path], dict[str, Any]]:
        """Download the packages into ``scratch``: their files, and what a manifest says of them.

        Raises HostError when neither the pinned ones nor newer ones can be had now, ConfigError when the
        machine lacks what it takes.
        """
        require_commands()
        pin = self.pin()
        if pin:
            packages = [Package(**fields) for fields in pin["packages"]]
            try:
                return download(packages, pin["suite"], scratch, progress), pin
            except HostError as e:
                progress(f"The packages pinned for {self.build} cannot be had ({e}): taking the newest.")
        return self.newest(scratch, progress)

    def newest(self, scratch: Path, progress: Progress = quiet) -> tuple[list[Path], dict[str, Any]]:
        """What ``fetch`` does without pins: by the signed index of the first suite that can deliver."""
        failure = ""
        for suite, expired_ok in self._suites:
            if failure:
                progress(f"{failure} Trying {suite}.")
            try:
                return self._from(
                    Archive(scratch / "apt", suite, self._architecture, expired_ok=expired_ok),
                    scratch,
                    progress,
                )
            except HostError as e:
                failure = str(e)
        raise HostError(f"{failure} Try again later, or set {MIRROR_VARIABLE} to another mirror of Debian.")

    def _from(self, archive: Archive, scratch: Path, progress: Progress) -> tuple[list[Path], dict[str, Any]]:
        archive.update()
        packages = sorted(self._choose(archive, self._names), key=lambda package: package.name)
        debs = archive.fetch(packages, scratch / "debs", progress)
        return debs, {"suite": archive.suite, "packages": [package.manifest() for package in packages]}


def text(pins: Mapping[str, dict[str, Any]]) -> str:
    """The pins as their file has them: sorted, one package a line."""
    return (
        "{\n" + ",\n".join(f"{json.dumps(build)}: {_entry(pins[build])}" for build in sorted(pins)) + "\n}\n"
    )


def _entry(pin: dict[str, Any]) -> str:
    packages = ",\n".join(f"    {json.dumps(package)}" for package in pin["packages"])
    return (
        f'{{\n  "request": {json.dumps(pin["request"])},\n'
        f'  "suite": {json.dumps(pin["suite"])},\n  "packages": [\n{packages}\n  ]\n}}'
    )


@functools.cache
def read() -> dict[str, dict[str, Any]]:
    """The pinned packages of each build, with the request they answer."""
    pins: dict[str, dict[str, Any]] = json.loads(FILE.read_text())
    return pins
