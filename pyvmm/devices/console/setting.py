# SPDX-License-Identifier: Apache-2.0
"""What a user says about a named port of a virtio console: ``NAME,unix=PATH`` or ``NAME,file=PATH``."""

from __future__ import annotations

from pyvmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.console.ports import Port
    from pyvmm.devices.settings import Settings

_NAME_LIMIT = 63


def check_port(settings: Settings) -> None:
    """Raise ConfigError unless there are a name for a device file in the guest, and one host end."""
    what, name = settings.what, settings.text("name") or ""
    ends = [key for key in ("unix", "file") if settings.text(key) is not None]
    if len(ends) != 1 or not name or "=" in name or ":" in name:
        raise ConfigError(f"{what}: write NAME,unix=PATH for a socket, or NAME,file=PATH for a file.")
    fine = name.isascii() and name.replace("-", "").replace("_", "").replace(".", "").isalnum()
    if not fine or len(name) > _NAME_LIMIT:
        raise ConfigError(
            f"{what}: a port's name is made of letters, digits, dots, dashes and underscores, "
            f"{_NAME_LIMIT} at most."
        )
    if "unix" in ends:
        from pyvmm.devices.console.unixsocket import check_path
    else:
        from pyvmm.devices.console.file import check_path
    check_path(settings.require(ends[0]), what)


def open_port(settings: Settings) -> Port:
    """The port itself. Raises ConfigError, HostError."""
    check_port(settings)
    name, unix = settings.require("name"), settings.text("unix")
    if unix is not None:
        from pyvmm.devices.console.unixsocket import UnixPort

        return UnixPort(name, unix, settings.what)
    from pyvmm.devices.console.file import FilePort

    return FilePort(name, settings.require("file"), settings.what)
