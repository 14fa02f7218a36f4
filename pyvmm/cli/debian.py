# SPDX-License-Identifier: Apache-2.0
"""The guest of whoever names no kernel: Debian's, with busybox. What it is made of is decided here alone."""

from __future__ import annotations

from pyvmm.devicelist import NOUNS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_DRIVERS = "drivers=all"  # has the initramfs load them before any command
_FULL_MEMORY = "512M"  # what the initramfs with drivers takes to be unpacked
_DRIVEN = frozenset({*NOUNS, "devices"} - {"ports"})  # the driver of ports is built in


def settle(values: dict[str, object]) -> bool:
    """Add what Debian's guest needs for the devices in ``values``, options by their nouns.

    Returns whether its initramfs must be the one with drivers; one that the user named is left alone.
    """
    full = "initrd" not in values and any(values.get(noun) for noun in _DRIVEN)
    if full:
        values["params"] = f"{_DRIVERS} {values.get('params', '')}".strip()
        values.setdefault("mem", _FULL_MEMORY)
    return full


def add(values: dict[str, object], progress: Callable[[str], None]) -> None:
    """Add Debian's kernel, and an initramfs unless there is one. Fetches or builds them when it must."""
    from pyvmm.lab import guests

    full = settle(values)
    values["kernel"] = str(guests.kernel(progress=progress))
    if "initrd" not in values:
        values["initrd"] = str(guests.initrd(full=full, progress=progress))
