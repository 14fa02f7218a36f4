# SPDX-License-Identifier: Apache-2.0
"""The vendor capabilities by which a driver finds a virtio device's registers (virtio 1.2, section 4.1.4).

What a hostile guest can do: ask for any access through the window. One that the BAR does not take reads 0.
"""

from __future__ import annotations

from pyvmm.devices.pci.capability import Capability
from pyvmm.devices.pci.registers import DWORD
from pyvmm.mmio.regs import Reg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.pci.bar import Region

    After = Callable[[], None] | None

#: cfg_type of the structures.
COMMON_CFG, NOTIFY_CFG, ISR_CFG, DEVICE_CFG, PCI_CFG = 1, 2, 3, 4, 5
_WINDOW = 16  # offset of pci_cfg_data


class StructureCapability(Capability):
    """Where one structure lies: ``length`` bytes from ``offset`` in BAR ``bar``."""

    ID = 0x09
    NAME = "virtio-cap"
    SIZE = 16

    CAP_LEN = Reg(0x02, 8, access="r")
    CFG_TYPE = Reg(0x03, 8, access="r")
    BAR = Reg(0x04, 8, access="r")
    CAP_ID = Reg(0x05, 8, access="r")
    OFFSET = Reg(0x08, 32, access="r", sizes=DWORD)
    LENGTH = Reg(0x0C, 32, access="r", sizes=DWORD)

    def __init__(self, cfg_type: int, bar: int, offset: int, length: int) -> None:
        super().__init__()
        self._fixed = (cfg_type, bar, offset, length)
        self.reset()

    def reset(self) -> None:
        """What it was made with."""
        super().reset()
        self.CAP_LEN = self.SIZE
        self.CFG_TYPE, self.BAR, self.OFFSET, self.LENGTH = self._fixed


class NotifyCapability(StructureCapability):
    """The doorbells: that of a queue is its queue_notify_off times ``multiplier`` bytes from ``offset``."""

    NAME = "virtio-notify-cap"
    SIZE = 20

    MULTIPLIER = Reg(0x10, 32, access="r", sizes=DWORD)

    def __init__(self, bar: int, offset: int, length: int, multiplier: int) -> None:
        self._multiplier = multiplier
        super().__init__(NOTIFY_CFG, bar, offset, length)

    def reset(self) -> None:
        """What it was made with."""
        super().reset()
        self.MULTIPLIER = self._multiplier


class WindowCapability(Capability):
    """Access to BAR ``region`` through configuration space, for drivers that cannot map it (4.1.4.9).

    The driver chooses bar, offset and a length of 1, 2 or 4; what lies there then appears in DATA, for an
    access of that length, as firmware makes it, or of all four bytes.
    """

    ID = 0x09
    NAME = "virtio-window-cap"
    SIZE = 20

    CAP_LEN = Reg(0x02, 8, access="r", reset=20)
    CFG_TYPE = Reg(0x03, 8, access="r", reset=PCI_CFG)
    BAR = Reg(0x04, 8)
    OFFSET = Reg(0x08, 32, sizes=DWORD)
    LENGTH = Reg(0x0C, 32, sizes=DWORD)
    DATA = Reg(_WINDOW, 32, on_read="_read_data", on_write="_write_data", sizes=(4,))

    def __init__(self, bar: int, size: int, region: Region) -> None:
        super().__init__()
        self._bar = bar
        self._size = size
        self._region = region
        self.reset()

    def decode(self, offset: int, size: int, is_write: bool, value: int) -> tuple[str, str]:
        """See RegisterDevice."""
        return super().decode(offset, 4 if offset == _WINDOW else size, is_write, value)

    def _build_reader(self, offset: int, size: int) -> Callable[[], int]:
        if offset == _WINDOW and size < 4:
            return lambda: self._read_data() if size == self.LENGTH else self._odd_read()
        return super()._build_reader(offset, size)

    def _build_writer(self, offset: int, size: int) -> Callable[[int], After]:
        if offset == _WINDOW and size < 4:
            return lambda value: self._write_data(value) if size == self.LENGTH else self._odd_write(value)
        return super()._build_writer(offset, size)

    def _chosen(self) -> int:
        """How many bytes the driver asked for, if it is an access that the region takes; else 0."""
        size = self.LENGTH
        ok = self._bar == self.BAR and size in (1, 2, 4)
        return size if ok and self.OFFSET % size == 0 and self._size - size >= self.OFFSET else 0

    def _read_data(self) -> int:
        size = self._chosen()
        return self._region.read(self.OFFSET, size) if size else 0

    def _write_data(self, value: int) -> After:
        size = self._chosen()
        return self._region.write(self.OFFSET, size, value & (1 << 8 * size) - 1) if size else None
