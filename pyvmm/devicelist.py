# SPDX-License-Identifier: Apache-2.0
"""The devices a user asks for: from the words of options to checked requests, in the order of the machine.

Every option is a shorter way to write ``--device KIND,...``. Nothing of the host is touched here.
"""

from __future__ import annotations

from pyvmm.devices import device_kind, settings
from pyvmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyvmm.devices.edu import Edu
    from pyvmm.devices.settings import Settings
    from pyvmm.devices.virtio.device import VirtioDevice

#: Noun of the configuration -> (option, kind of device). The order is that of the devices on their bus.
NOUNS = {
    "disks": ("--disk", "blk"),
    "nets": ("--network", "net"),
    "p9": ("--9p", "9p"),
    "shares": ("--share", "fs"),
    "vsock": ("--vsock", "vsock"),
    "rng": ("--rng", "rng"),
    "balloon": ("--balloon", "balloon"),
    "ports": ("--port", "console"),
}

#: Settings that tell the devices of a machine apart, or take something of the host that is there once.
_UNIQUE = ("id", "tag", "name", "mac", "tap", "cid", "unix")


class DeviceRequest:
    """One device: its class, what the user said about it, and its name on the bus and in messages."""

    __slots__ = ("kind", "model", "name", "settings")

    def __init__(self, kind: str, model: type[VirtioDevice] | type[Edu], name: str, chosen: Settings) -> None:
        self.kind = kind
        self.model = model
        self.name = name
        self.settings = chosen


def requests(nouns: Mapping[str, Sequence[str]], devices: Sequence[str]) -> tuple[DeviceRequest, ...]:
    """Requests for what stands under each noun, and in ``devices`` (``KIND,key=value``).

    Raises ConfigError for kinds and settings that do not exist, and for two devices with one of _UNIQUE.
    """
    found: list[DeviceRequest] = []
    for noun, (option, kind) in NOUNS.items():
        for body in nouns.get(noun, ()):
            add(found, kind, body, f"{option} {body}".rstrip())
    for body in devices:
        kind, _, rest = body.partition(",")
        add(found, kind, rest, f"--device {body}")
    return tuple(found)


def add(found: list[DeviceRequest], kind: str, body: str, what: str) -> None:
    """One more request; ``what`` is how it was spelled. Raises ConfigError as ``requests`` does."""
    model = device_kind(kind)
    chosen = settings.parse(what, body, model.SETTINGS, model.POSITIONAL)
    values = chosen.values()
    for other in found:
        theirs = other.settings.values()
        for key in _UNIQUE:
            if values.get(key) is not None and values[key] == theirs.get(key):
                same = f"have the same {key} {values[key]!r}; give each its own."
                raise ConfigError(f"{other.settings.what} and {what} {same}")
    number = sum(other.kind == kind for other in found)
    chosen.name = f"{kind}{number}"
    found.append(DeviceRequest(kind, model, chosen.name, chosen))
