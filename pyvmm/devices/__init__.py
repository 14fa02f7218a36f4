# SPDX-License-Identifier: Apache-2.0
"""Device models. They know offsets, integers and the protocols of ``base``; never KVM."""

from __future__ import annotations

from pyvmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.edu import Edu
    from pyvmm.devices.virtio.device import VirtioDevice

#: What ``--device KIND`` knows: the module below this package, and the class in it.
KINDS = {
    "9p": ("virtio.p9", "P9"),
    "balloon": ("virtio.balloon", "Balloon"),
    "blk": ("virtio.blk", "Blk"),
    "console": ("virtio.console", "Console"),
    "edu": ("edu", "Edu"),
    "fs": ("virtio.fs", "Fs"),
    "net": ("virtio.net", "Net"),
    "rng": ("virtio.rng", "Rng"),
    "vsock": ("virtio.vsock", "Vsock"),
}


def device_kind(name: str) -> type[VirtioDevice] | type[Edu]:
    """The class of a kind of device; only what a machine has is imported. Raises ConfigError."""
    if name not in KINDS:
        from pyvmm.nearest import nearest

        hint = nearest(name, KINDS) or f" There are {', '.join(KINDS)}."
        raise ConfigError(f"There is no device {name!r}.{hint}")
    module, attribute = KINDS[name]
    found: type[VirtioDevice] | type[Edu]
    found = getattr(__import__(f"{__name__}.{module}", fromlist=[attribute]), attribute)
    return found
