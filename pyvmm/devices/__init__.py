# SPDX-License-Identifier: Apache-2.0
"""Device models. They know offsets, integers and the protocols of ``base``; never KVM."""

from __future__ import annotations

from pyvmm.errors import ConfigError
from pyvmm.nearest import nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.edu import Edu
    from pyvmm.devices.virtio.device import VirtioDevice
    from pyvmm.mmio.regs import RegisterDevice

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
        raise ConfigError(f"There is no device {name!r}.{nearest(name, KINDS)}")
    module, attribute = KINDS[name]
    found: type[VirtioDevice] | type[Edu]
    found = getattr(__import__(f"{__name__}.{module}", fromlist=[attribute]), attribute)
    return found


def device_types() -> tuple[type[RegisterDevice], ...]:
    """Every device with a register map. Imported here and not above: a run loads only what it has."""
    from pyvmm.devices.aplic import Aplic
    from pyvmm.devices.edu import Edu
    from pyvmm.devices.pci.header import Header
    from pyvmm.devices.pci.msi import Msi
    from pyvmm.devices.pci.msix import Msix, MsixTable
    from pyvmm.devices.plic import Plic
    from pyvmm.devices.rtc import GoldfishRtc
    from pyvmm.devices.uart8250 import Uart8250

    return (Aplic, Plic, GoldfishRtc, Uart8250, Edu, Header, Msi, Msix, MsixTable)
