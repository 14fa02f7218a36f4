# SPDX-License-Identifier: Apache-2.0
"""Facts about the host that guests run on, as ``pyvmm doctor`` finds them there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pyvmm.config import IRQCHIPS
from pyvmm.errors import ConfigError, HostError
from pyvmm.nearest import nearest
from pyvmm.testing.place import Place

_EMULATED_SCALE = 5.0
_REQUIREMENTS = ("cpus", "irqchip", "isa", "sbi", "tool")
_IRQCHIPS = tuple(kind for kind in IRQCHIPS if kind != "auto")


class Host:
    """What a test may want to know; ``reason`` says why guests cannot run, and is empty when they can.

    ``where`` is ``local`` or ``lab:FLAVOUR``; ``isa`` and ``sbi`` are sets of names; ``aia`` says whether KVM
    has an in-kernel AIA; ``speed`` is ``hardware`` or ``emulated``; ``memory`` is in bytes.
    """

    def __init__(self, place: Place) -> None:
        self.where = place.name
        self.speed = "emulated" if place.emulated else "hardware"
        self.reason = ""
        self.checks: list[dict[str, str]] = []
        self.memory = 0
        self._place = place
        self._tools: dict[str, bool] = {}
        try:
            place.start()
            self.checks = _doctor(place)
            self.memory = _memory(place)
        except (HostError, ConfigError) as error:
            self.reason = str(error)
        # A host that is no RISC-V one only gets a warning, since the lab is there: not for guests right here.
        against = [check for check in self.checks if check["state"] == "fail" or check["name"] == "host"]
        if against:
            self.reason = ": ".join(filter(None, (against[0]["found"], against[0]["advice"])))
        self.isa = frozenset(self._found("isa").split())
        self.sbi = frozenset(self._found("sbi").split())
        self.aia = self._state("in-kernel AIA") == "ok"

    @property
    def kvm(self) -> bool:
        """Whether guests can run."""
        return not self.reason

    @property
    def scale(self) -> float:
        """What ``--vmm-timeout-scale auto`` multiplies time limits by."""
        return _EMULATED_SCALE if self.speed == "emulated" else 1.0

    def has_tool(self, name: str) -> bool:
        """Whether a program is there."""
        if name not in self._tools:
            status, _ = self._place.run(["sh", "-c", 'command -v -- "$1"', "sh", name])
            self._tools[name] = status == 0
        return self._tools[name]

    def lacks(self, requirements: Mapping[str, object]) -> str:
        """What this host lacks of the keywords of ``vmm_requires``, as a sentence; empty when nothing."""
        for name in _each(requirements.get("isa")):
            if name.lower() not in self.isa:
                return f"this host ({self.where}) has no {name}"
        for name in _each(requirements.get("sbi")):
            if name.lower() not in {one.lower() for one in self.sbi}:
                return f"this host's KVM ({self.where}) has no SBI {name}"
        if requirements.get("irqchip") == "aia" and not self.aia:
            return f"this host's KVM ({self.where}) has no in-kernel AIA"
        for name in _each(requirements.get("tool")):
            if not self.has_tool(name):
                return f"{name} is not installed on this host ({self.where})"
        most = int(self._found("cpus").removeprefix("up to ").partition(" ")[0] or 0)
        if most < int(str(requirements.get("cpus", 0))):
            return f"this host's KVM ({self.where}) takes {most} CPUs a guest"
        return ""

    def _check(self, name: str) -> dict[str, str]:
        return next((check for check in self.checks if check["name"] == name), {})

    def _found(self, name: str) -> str:
        return self._check(name).get("found", "")

    def _state(self, name: str) -> str:
        return self._check(name).get("state", "")


def check_requirement(name: str, value: object) -> None:
    """Raise ConfigError, with the nearest name, for what vmm_requires cannot ask for."""
    if name not in _REQUIREMENTS:
        raise ConfigError(f"vmm_requires has no {name!r}.{nearest(name, _REQUIREMENTS)}")
    if name == "irqchip" and value not in _IRQCHIPS:
        raise ConfigError(f"irqchip takes one of {', '.join(_IRQCHIPS)}, not {value!r}.")
    if name == "cpus" and (not isinstance(value, int) or value < 1):
        raise ConfigError(f"cpus takes a whole number above 0, not {value!r}.")


def _each(value: object) -> Sequence[str]:
    if value is None:
        return ()
    return [value] if isinstance(value, str) else [str(one) for one in value]  # type: ignore[attr-defined]


def _doctor(place: Place) -> list[dict[str, str]]:
    status, output = place.run(["pyvmm", "doctor", "--json"])
    try:
        checks: list[dict[str, str]] = json.loads(output)
    except ValueError:
        raise HostError(f"pyvmm doctor failed on the host of the guests ({place.name}): {output}.") from None
    if status not in (0, 126):
        raise HostError(f"pyvmm doctor ended with status {status} on the host of the guests.")
    return checks


def _memory(place: Place) -> int:
    """Bytes of memory that the host could give to guests now."""
    _, output = place.run(["cat", "/proc/meminfo"])
    for line in output.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0
