# SPDX-License-Identifier: Apache-2.0
"""virtio over PCI (virtio 1.2, section 4.1), without the legacy interface.

One BAR holds the four structures, a page each, and another the MSI-X table. Every queue has a doorbell
address of its own.

What a hostile guest can do is said in ``core``; here it can name vectors and queues that do not exist, which
is found out when it does.
"""

from __future__ import annotations

from pyvmm.devices.pci.bar import MEMORY_64, Bar
from pyvmm.devices.pci.function import PciFunction
from pyvmm.devices.pci.header import Identity
from pyvmm.devices.pci.msix import MAX_VECTORS, Msix
from pyvmm.devices.pci.registers import PackedRegisters
from pyvmm.devices.virtio import pcicaps
from pyvmm.devices.virtio.core import VirtioCore
from pyvmm.mmio.regs import Reg, RegArray, RegisterDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.base import Doorbells
    from pyvmm.devices.pci.capability import MsiLines
    from pyvmm.devices.virtio.device import Services, VirtioDevice
    from pyvmm.memory import GuestMemory
    from pyvmm.mmio.regs import State
    from pyvmm.ring import Ring

    After = Callable[[], None] | None

_VENDOR = 0x1AF4
_DEVICE = 0x1040  # plus the virtio device id
_CLASSES = {1: 0x020000, 2: 0x010000, 3: 0x078000, 19: 0x078000, 26: 0x018000}
_OTHER_CLASS = 0xFF0000

NO_VECTOR = 0xFFFF
_QUEUE, _CONFIG_CHANGE = 1, 2  # bits of ISR

_STRUCTURES_BAR, _MSIX_BAR = 0, 2
_PAGE = 0x1000
_COMMON, _ISR, _DEVICE_CONFIG, _NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000
_BAR_SIZE = 0x4000
_NOTIFY_STRIDE = 4
_NOTIFY_SIZE = 2  # what the driver stores there: the queue's index


class VirtioPci(PackedRegisters):
    """The common configuration structure, and behind it the other three: everything in the first BAR.

    ``function`` is what goes onto the PCI bus. ``msi_lines`` is None on a machine without MSIs: the function
    has no MSI-X capability then, and uses its wire.
    """

    NAME = "virtio-pci"
    SIZE = _BAR_SIZE
    SORTS = True
    STATE = ("_vectors", "_isr")

    DEVICE_FEATURE_SELECT = Reg(0x00, 32, on_read="_read_device_select", on_write="_write_device_select")
    DEVICE_FEATURE = Reg(0x04, 32, access="r", on_read="_read_device_feature")
    DRIVER_FEATURE_SELECT = Reg(0x08, 32, on_read="_read_driver_select", on_write="_write_driver_select")
    DRIVER_FEATURE = Reg(0x0C, 32, on_read="_read_driver_feature", on_write="_write_driver_feature")
    CONFIG_MSIX_VECTOR = Reg(0x10, 16, reset=NO_VECTOR, on_write="_write_config_vector")
    NUM_QUEUES = Reg(0x12, 16, access="r", on_read="_read_num_queues")
    DEVICE_STATUS = Reg(0x14, 8, on_read="_read_status", on_write="_write_status")
    CONFIG_GENERATION = Reg(0x15, 8, access="r", on_read="_read_generation")
    QUEUE_SELECT = Reg(0x16, 16, on_read="_read_queue_select", on_write="_write_queue_select")
    QUEUE_SIZE = Reg(0x18, 16, on_read="_read_queue_size", on_write="_write_queue_size")
    QUEUE_MSIX_VECTOR = Reg(0x1A, 16, on_read="_read_queue_vector", on_write="_write_queue_vector")
    QUEUE_ENABLE = Reg(0x1C, 16, on_read="_read_enable", on_write="_write_enable")
    QUEUE_NOTIFY_OFF = Reg(0x1E, 16, access="r", on_read="_read_notify_off")
    QUEUE_DESC = RegArray(0x20, 32, count=2, on_read="_read_desc", on_write="_write_desc")
    QUEUE_DRIVER = RegArray(0x28, 32, count=2, on_read="_read_driver", on_write="_write_driver")
    QUEUE_DEVICE = RegArray(0x30, 32, count=2, on_read="_read_device", on_write="_write_device")
    QUEUE_NOTIFY_DATA = Reg(0x38, 16, access="r", on_read="_read_notify_off")
    QUEUE_RESET = Reg(0x3A, 16, on_read="_read_reset", on_write="_write_reset")
    ISR = Reg(_ISR, 8, access="r", on_read="_read_isr")

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        ring: Ring,
        services: Services,
        doorbells: Doorbells,
        msi_lines: MsiLines | None,
    ) -> None:
        super().__init__()
        self.device = device
        queues = len(device.queue_sizes)
        kind = device.DEVICE_ID
        identity = Identity(
            _VENDOR,
            _DEVICE + kind,
            _CLASSES.get(kind, _OTHER_CLASS),
            revision=1,
            subsystem_vendor=_VENDOR,
            subsystem=_DEVICE + kind,
        )
        self.function = PciFunction(device.NAME, identity)
        device.lock = self.function.lock
        self._doorbells = [doorbells(_NOTIFY_SIZE, None) for _ in range(queues)]
        self.core = VirtioCore(device, self, memory, ring, services, self._doorbells)
        self.function.add_bar(
            Bar(_STRUCTURES_BAR, _BAR_SIZE, self, kind=MEMORY_64, on_place=self._place_doorbells)
        )
        self._msix: Msix | None = None
        self._add_capabilities(queues, msi_lines)
        device.reset()
        self._vectors = [NO_VECTOR] * queues
        self._isr = 0
        RegisterDevice.reset(self)

    def _add_capabilities(self, queues: int, msi_lines: MsiLines | None) -> None:
        function = self.function
        if msi_lines is not None:
            self._msix = Msix(min(queues + 1, MAX_VECTORS), msi_lines, bar=_MSIX_BAR)
            function.add_bar(self._msix.bar)
            function.add_capability(self._msix)
        for cfg_type, offset, length in (
            (pcicaps.COMMON_CFG, _COMMON, 0x3C),
            (pcicaps.ISR_CFG, _ISR, 1),
            (pcicaps.DEVICE_CFG, _DEVICE_CONFIG, max(self.device.SIZE, 4)),
        ):
            function.add_capability(pcicaps.StructureCapability(cfg_type, _STRUCTURES_BAR, offset, length))
        notify = pcicaps.NotifyCapability(_STRUCTURES_BAR, _NOTIFY, queues * _NOTIFY_STRIDE, _NOTIFY_STRIDE)
        function.add_capability(notify)
        function.add_capability(pcicaps.WindowCapability(_STRUCTURES_BAR, _BAR_SIZE, self))

    # The BAR

    def read(self, offset: int, size: int) -> int:
        """A register, or the device's configuration space in its page."""
        if _DEVICE_CONFIG <= offset < _NOTIFY:
            return self.device.read(offset - _DEVICE_CONFIG, size)
        return super().read(offset, size)

    def write(self, offset: int, size: int, value: int) -> After:
        """A register, the device's configuration space, or a doorbell that the kernel did not catch."""
        if offset >= _NOTIFY:
            self.core.notify((offset - _NOTIFY) // _NOTIFY_STRIDE)
            return None
        if offset >= _DEVICE_CONFIG:
            return self.device.write(offset - _DEVICE_CONFIG, size, value)
        return super().write(offset, size, value)

    def decode(self, offset: int, size: int, is_write: bool, value: int) -> tuple[str, str]:
        """Names for the trace."""
        if offset >= _NOTIFY:
            return f"NOTIFY[{(offset - _NOTIFY) // _NOTIFY_STRIDE}]", ""
        if offset >= _DEVICE_CONFIG:
            return self.device.decode(offset - _DEVICE_CONFIG, size, is_write, value)
        return super().decode(offset, size, is_write, value)

    def _place_doorbells(self, base: int | None) -> None:
        self.core.place_doorbells(
            lambda index: None if base is None else base + _NOTIFY + index * _NOTIFY_STRIDE
        )

    def reset(self) -> None:
        """Power-on. The machine's, not the driver's: nobody waits for host I/O here."""
        super().reset()
        self.core.reset()
        self._forget_interrupts()

    def _forget_interrupts(self) -> None:
        self._vectors = [NO_VECTOR] * len(self._vectors)
        self.CONFIG_MSIX_VECTOR = NO_VECTOR
        self._isr = 0
        self.function.set_intx(False)

    def close(self) -> None:
        """End with the machine. Without the lock; the host bridge closes the function."""
        self.core.close()
        with self.lock:
            self._forget_interrupts()
        for doorbell in self._doorbells:
            doorbell.close()

    def state(self) -> State:
        """Registers, what the driver set up, and the device."""
        return {**super().state(), **self.core.state()}

    def load_state(self, state: State) -> None:
        """Take over what ``state`` returned, and go on: see VirtioCore. Raises ConfigError."""
        core = {name: value for name, value in state.items() if name in self.core.STATE}
        super().load_state({name: value for name, value in state.items() if name not in core})
        self.core.load_state(core)

    # Interrupts

    def queue_interrupt(self, index: int) -> None:
        """Queue ``index`` has used buffers."""
        self._interrupt(self._vectors[index], _QUEUE)

    def config_interrupt(self) -> None:
        """The configuration space or the status changed."""
        self._interrupt(self.CONFIG_MSIX_VECTOR, _CONFIG_CHANGE)

    def queue_line(self, index: int) -> int | None:
        """The eventfd behind the queue's MSI-X vector, if it has one."""
        vector = self._vectors[index]
        if self._msix is None or not self._msix.replaces_intx:
            return None
        line = self._msix.line(vector)
        return None if line is None else line.fd

    def _interrupt(self, vector: int, reason: int) -> None:
        if self._msix is not None and self._msix.replaces_intx:
            if vector != NO_VECTOR:
                self._msix.signal(vector)
        else:
            self._isr |= reason
            self.function.set_intx(True)

    def _read_isr(self) -> int:
        value, self._isr = self._isr, 0
        self.function.set_intx(False)
        return value

    def _vector(self, value: int) -> int:
        """What a vector register holds after ``value`` was written: no vector, when there is none such."""
        count = self._msix.vectors if self._msix is not None else 0
        return value if value < count else NO_VECTOR

    def _write_config_vector(self, value: int) -> None:
        self.CONFIG_MSIX_VECTOR = self._vector(value)

    def _read_queue_vector(self) -> int:
        index = self.core.queue_select
        return self._vectors[index] if index < len(self._vectors) else NO_VECTOR

    def _write_queue_vector(self, value: int) -> None:
        index = self.core.queue_select
        if index < len(self._vectors):
            self._vectors[index] = self._vector(value)

    # Registers

    def _read_device_select(self) -> int:
        return self.core.device_feature_select

    def _write_device_select(self, value: int) -> None:
        self.core.device_feature_select = value

    def _read_device_feature(self) -> int:
        return self.core.read_device_features()

    def _read_driver_select(self) -> int:
        return self.core.driver_feature_select

    def _write_driver_select(self, value: int) -> None:
        self.core.driver_feature_select = value

    def _read_driver_feature(self) -> int:
        return self.core.read_driver_features()

    def _write_driver_feature(self, value: int) -> None:
        self.core.write_driver_features(value)

    def _read_num_queues(self) -> int:
        return len(self._vectors)

    def _read_status(self) -> int:
        return self.core.status

    def _write_status(self, value: int) -> After:
        after = self.core.write_status(value)
        if value == 0:
            self._forget_interrupts()
        return after

    def _read_generation(self) -> int:
        return self.core.generation

    def _read_queue_select(self) -> int:
        return self.core.queue_select

    def _write_queue_select(self, value: int) -> None:
        self.core.queue_select = value

    def _read_queue_size(self) -> int:
        return self.core.selected.size

    def _write_queue_size(self, value: int) -> None:
        self.core.set_queue("size", value)

    def _read_enable(self) -> int:
        return int(self.core.selected.enabled)

    def _write_enable(self, value: int) -> None:
        if value == 1:  # 0 is what no driver writes (4.1.4.3.2): a queue is disabled by its reset
            self.core.enable_queue()

    def _read_notify_off(self) -> int:
        return self.core.queue_select if self.core.selected.largest else 0

    def _read_reset(self) -> int:
        return 0  # the reset was over when the store that asked for it was

    def _write_reset(self, value: int) -> After:
        return self.core.disable_queue() if value == 1 else None

    # Addresses of the selected queue's areas: low half, high half.

    def _read_desc(self, half: int) -> int:
        return self.core.queue_address("desc", half)

    def _write_desc(self, half: int, value: int) -> None:
        self.core.set_queue_address("desc", half, value)

    def _read_driver(self, half: int) -> int:
        return self.core.queue_address("driver", half)

    def _write_driver(self, half: int, value: int) -> None:
        self.core.set_queue_address("driver", half, value)

    def _read_device(self, half: int) -> int:
        return self.core.queue_address("device", half)

    def _write_device(self, half: int, value: int) -> None:
        self.core.set_queue_address("device", half, value)
