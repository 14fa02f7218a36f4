# SPDX-License-Identifier: Apache-2.0
"""Device models. They know offsets, integers and the protocols of ``base``; never KVM."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.mmio.regs import RegisterDevice


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
