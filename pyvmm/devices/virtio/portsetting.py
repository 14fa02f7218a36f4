# SPDX-License-Identifier: Apache-2.0
"""What a user says about a named port of a virtio console."""

from __future__ import annotations

from pyvmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.virtio.consoleports import Port

_NAME_LIMIT = 63


class PortSetting:
    """One checked ``NAME=unix:PATH`` or ``NAME=file:PATH``. ``what`` is how the user spelled it."""

    __slots__ = ("kind", "name", "path", "what")

    def __init__(self, name: str, kind: str, path: str, what: str) -> None:
        self.name = name
        self.kind = kind
        self.path = path
        self.what = what

    def open(self) -> Port:
        """The port itself. Raises ConfigError, HostError."""
        if self.kind == "unix":
            from pyvmm.devices.virtio.consolesocket import UnixPort

            return UnixPort(self.name, self.path, self.what)
        from pyvmm.devices.virtio.consolefile import FilePort

        return FilePort(self.name, self.path, self.what)


def parse_port(text: str, option: str = "--port") -> PortSetting:
    """Check what was given to ``option``. Raises ConfigError."""
    what = f"{option} {text}"
    name, _, place = text.partition("=")
    kind, _, path = place.partition(":")
    if kind not in ("unix", "file") or not path:
        raise ConfigError(f"{what}: write NAME=unix:PATH for a socket, or NAME=file:PATH for a file.")
    check_name(name, what)
    return PortSetting(name, kind, path, what)


def check_name(name: str, what: str) -> None:
    """Raise ConfigError unless ``name`` can be the name of a device file in the guest."""
    fine = name.isascii() and name.replace("-", "").replace("_", "").replace(".", "").isalnum()
    if not fine or len(name) > _NAME_LIMIT:
        raise ConfigError(
            f"{what}: a port's name is made of letters, digits, dots, dashes and underscores, "
            f"{_NAME_LIMIT} at most."
        )
