# SPDX-License-Identifier: Apache-2.0
"""The files that a configuration names: no two uses of one may get into each other's way."""

from __future__ import annotations

import os
import stat

from pyvmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.config import MachineConfig
    from pyvmm.devicelist import DeviceRequest


def check(config: MachineConfig) -> None:
    """Raise ConfigError for files that cannot be written, or would get into each other's way.

    Changes nothing.
    """
    disks = [one for one in config.devices if one.kind == "blk"]
    ports = [one for one in config.devices if one.kind == "console"]
    created = [
        (what, path)
        for what, path in (
            ("The log", config.log),
            ("The device tree", config.dump_dtb),
            ("The trace", config.trace_out),
        )
        if path is not None
    ]
    for what, path in created:
        from pyvmm import hostfile

        hostfile.check(what, path)
    needed = (config.kernel, config.initrd, config.firmware, *(one.settings.text("file") for one in disks))
    written = (*(path for _, path in created), *(one.settings.text("file") for one in ports))
    _check_written([path for path in written if path], [path for path in needed if path])
    _check_disks(disks)


def _check_written(written: list[str], needed: list[str]) -> None:
    read = {_identity(path) for path in needed}
    found: set[object] = set()
    for path in filter(_is_kept, written):
        identity = _identity(path)
        if identity in read:
            raise ConfigError(f"{path} would be written over, and the guest needs it; name another file.")
        if identity in found:
            raise ConfigError(f"{path} would be written by two at once; name another file for one of them.")
        found.add(identity)


def _check_disks(disks: list[DeviceRequest]) -> None:
    found: dict[object, DeviceRequest] = {}
    for disk in disks:
        path = disk.settings.require("file")
        first = found.setdefault(_identity(path), disk)
        if first is not disk and not (first.settings.flag("ro") and disk.settings.flag("ro")):
            raise ConfigError(
                f"The disk image {path} is given twice, with {first.settings.what} and {disk.settings.what}: "
                "leave one out, or say ro in both."
            )


def _is_kept(path: str) -> bool:
    """Whether what is written there stays there: not at a terminal, a pipe, or /dev/null."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True  # it will be made


def _identity(path: str) -> object:
    """What tells a file or device from others, whatever it is called."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    if stat.S_ISBLK(status.st_mode):
        return status.st_rdev
    return status.st_dev, status.st_ino
