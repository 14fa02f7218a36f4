# SPDX-License-Identifier: Apache-2.0
"""virtio over MMIO, version 2 (virtio 1.2, section 4.2): one page of registers and one wire.

The driver's notifications are stores to QUEUE_NOTIFY, each queue's value caught by a doorbell of its own.

The wire is taken by its edges: it pulses whenever a bit of INTERRUPT_STATUS becomes set. So to acknowledge is
only to clear bits, and the two registers are a word for which _native_status.c can answer, too
(``mmio.direct``). A bit that is set already needs no pulse: the driver has still to acknowledge it, and looks
at its queues after that. A guest that takes the wire by its level, against what the device tree says, sees no
interrupt.
"""

from __future__ import annotations

import ctypes

from pyvmm import native
from pyvmm.devices.virtio.core import VirtioCore
from pyvmm.errors import ConfigError
from pyvmm.mmio.regs import Bit, Reg, RegArray, RegisterDevice
from pyvmm.ring import NATIVE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.base import Doorbells, IrqLine
    from pyvmm.devices.virtio.device import Services, VirtioDevice
    from pyvmm.fdt import Node
    from pyvmm.memory import GuestMemory
    from pyvmm.mmio.bus import Mapping
    from pyvmm.mmio.regs import State
    from pyvmm.ring import Ring

    After = Callable[[], None] | None

MAGIC = 0x7472_6976  # "virt"
VENDOR = 0x4D56_5950  # "PYVM"
_CONFIG = 0x100
_QUEUE, _CONFIG_CHANGE = 1, 2  # bits of INTERRUPT_STATUS
_ALL_REASONS = _QUEUE | _CONFIG_CHANGE
_NO_MEMORY = 0xFFFF_FFFF  # of a shared memory region that does not exist
_NOTIFY_SIZE = 4


class VirtioMmio(RegisterDevice):
    """A device's registers on the bus. Hostile guests: see ``core``; everything else here is data.

    Lock order: the device's, which is also this one's, then the interrupt controller's.
    """

    NAME = "virtio-mmio"
    SIZE = 0x1000
    SORTS = True
    STATE = ("reasons",)

    MAGIC_VALUE = Reg(0x000, access="r", reset=MAGIC)
    VERSION = Reg(0x004, access="r", reset=2)
    DEVICE_ID = Reg(0x008, access="r", on_read="_read_device_id")
    VENDOR_ID = Reg(0x00C, access="r", reset=VENDOR)
    DEVICE_FEATURES = Reg(0x010, access="r", on_read="_read_device_features")
    DEVICE_FEATURES_SEL = Reg(0x014, access="w", on_write="_write_device_features_sel")
    DRIVER_FEATURES = Reg(0x020, access="w", on_write="_write_driver_features")
    DRIVER_FEATURES_SEL = Reg(0x024, access="w", on_write="_write_driver_features_sel")
    QUEUE_SEL = Reg(0x030, access="w", on_write="_write_queue_sel")
    QUEUE_NUM_MAX = Reg(0x034, access="r", on_read="_read_queue_num_max")
    QUEUE_NUM = Reg(0x038, access="w", on_write="_write_queue_num")
    QUEUE_READY = Reg(0x044, fields={"ready": Bit(0)}, on_read="_read_ready", on_write="_write_ready")
    QUEUE_NOTIFY = Reg(0x050, access="w", on_write="_write_queue_notify")
    INTERRUPT_STATUS = Reg(
        0x060, access="r", fields={"queue": Bit(0), "config": Bit(1)}, on_read="_read_interrupt_status"
    )
    INTERRUPT_ACK = Reg(0x064, access="w", on_write="_write_interrupt_ack")
    STATUS = Reg(0x070, on_read="_read_status", on_write="_write_status")
    QUEUE_DESC = RegArray(0x080, access="w", count=2, on_write="_write_desc")  # low half, high half
    QUEUE_DRIVER = RegArray(0x090, access="w", count=2, on_write="_write_driver")
    QUEUE_DEVICE = RegArray(0x0A0, access="w", count=2, on_write="_write_device")
    SHM_SEL = Reg(0x0AC, access="w", on_write="_ignore")
    SHM_LEN_LOW = Reg(0x0B0, access="r", reset=_NO_MEMORY)
    SHM_LEN_HIGH = Reg(0x0B4, access="r", reset=_NO_MEMORY)
    SHM_BASE_LOW = Reg(0x0B8, access="r", reset=_NO_MEMORY)
    SHM_BASE_HIGH = Reg(0x0BC, access="r", reset=_NO_MEMORY)
    QUEUE_RESET = Reg(0x0C0, fields={"reset": Bit(0)}, on_read="_read_reset", on_write="_write_reset")
    CONFIG_GENERATION = Reg(0x0FC, access="r", on_read="_read_generation")

    def __init__(
        self,
        device: VirtioDevice,
        irq: IrqLine,
        memory: GuestMemory,
        ring: Ring,
        services: Services,
        doorbells: Doorbells,
    ) -> None:
        super().__init__()
        self.lock = device.lock
        self.device = device
        self._irq = irq
        self._ring = ring
        self._status = ctypes.c_uint32()  # INTERRUPT_STATUS
        self._status_address = ctypes.addressof(self._status)
        self._doorbells = [doorbells(_NOTIFY_SIZE, index) for index in range(len(device.queue_sizes))]
        self.core = VirtioCore(device, self, memory, ring, services, self._doorbells)
        device.reset()
        RegisterDevice.reset(self)

    def place(self, base: int) -> None:
        """Say at which guest address the registers are: the doorbells listen there."""
        self.core.place_doorbells(lambda _: base + type(self).QUEUE_NOTIFY.offset)

    def answer_directly(self, mapping: Mapping) -> None:
        """Have accesses to INTERRUPT_STATUS and INTERRUPT_ACK answered in C, if that can be."""
        function = native.address("pyvmm_virtio_status") if self._ring.backend == NATIVE else 0
        if function:
            offset = type(self).INTERRUPT_STATUS.offset
            mapping.answer_directly(offset, 8, function, self._status_address)

    @staticmethod
    def describe(node: Node) -> None:
        """Devicetree properties (binding virtio,mmio)."""
        node["compatible"] = "virtio,mmio"
        node["dma-coherent"] = None

    # Device

    def read(self, offset: int, size: int) -> int:
        """A register, or the device's configuration space from 0x100."""
        if offset >= _CONFIG:
            return self.device.read(offset - _CONFIG, size)
        return super().read(offset, size)

    def write(self, offset: int, size: int, value: int) -> After:
        """A register, or the device's configuration space from 0x100."""
        if offset >= _CONFIG:
            return self.device.write(offset - _CONFIG, size, value)
        return super().write(offset, size, value)

    def decode(self, offset: int, size: int, is_write: bool, value: int) -> tuple[str, str]:
        """Names for the trace."""
        if offset >= _CONFIG:
            return self.device.decode(offset - _CONFIG, size, is_write, value)
        return super().decode(offset, size, is_write, value)

    def reset(self) -> None:
        """Power-on. The machine's, not the driver's: nobody waits for host I/O here."""
        self.core.reset()  # first: it may interrupt once more
        super().reset()
        self._write_interrupt_ack(_ALL_REASONS)

    def close(self) -> None:
        """End with the machine. Without the lock."""
        self.core.close()
        with self.lock:
            self._write_interrupt_ack(_ALL_REASONS)
        for doorbell in self._doorbells:
            doorbell.close()

    def state(self) -> State:
        """Registers, what the driver set up, and the device."""
        return {**super().state(), **self.core.state()}

    def load_state(self, state: State) -> None:
        """Take over what ``state`` returned, and go on: see VirtioCore. Raises ConfigError."""
        reasons = state.get("reasons")
        if isinstance(reasons, int) and reasons & ~_ALL_REASONS:
            raise ConfigError(f"The saved state of {self.NAME} is damaged: reasons = {reasons}.")
        core = {name: value for name, value in state.items() if name in self.core.STATE}
        super().load_state({name: value for name, value in state.items() if name not in core})
        self.core.load_state(core)
        if self.reasons:
            self._irq.pulse()

    # Interrupts

    @property
    def reasons(self) -> int:
        """What INTERRUPT_STATUS shows."""
        return self._ring.load_acquire32(self._status_address)

    @reasons.setter
    def reasons(self, bits: int) -> None:
        self._ring.store_release32(self._status_address, bits)

    def queue_interrupt(self, _index: int) -> None:
        """A queue has used buffers: the driver looks at all of them."""
        self._raise(_QUEUE)

    def config_interrupt(self) -> None:
        """The configuration space or the status changed."""
        self._raise(_CONFIG_CHANGE)

    def queue_line(self, _index: int) -> None:
        """There is one wire, and it needs INTERRUPT_STATUS: nobody can interrupt without us."""

    def _raise(self, reason: int) -> None:
        if not self._ring.set_bits32(self._status_address, reason) & reason:
            self._irq.pulse()

    def _read_interrupt_status(self) -> int:
        return self.reasons

    def _write_interrupt_ack(self, value: int) -> None:
        self._ring.clear_bits32(self._status_address, value)

    # Registers

    def _read_device_id(self) -> int:
        return self.device.DEVICE_ID

    def _read_device_features(self) -> int:
        return self.core.read_device_features()

    def _write_device_features_sel(self, value: int) -> None:
        self.core.device_feature_select = value

    def _write_driver_features(self, value: int) -> None:
        self.core.write_driver_features(value)

    def _write_driver_features_sel(self, value: int) -> None:
        self.core.driver_feature_select = value

    def _write_queue_sel(self, value: int) -> None:
        self.core.queue_select = value

    def _read_queue_num_max(self) -> int:
        return self.core.selected.largest

    def _write_queue_num(self, value: int) -> None:
        self.core.set_queue("size", value)

    def _read_ready(self) -> int:
        return int(self.core.selected.enabled)

    def _write_ready(self, value: int) -> After:
        if value:
            self.core.enable_queue()
            return None
        return self.core.disable_queue()

    def _write_queue_notify(self, value: int) -> None:
        self.core.notify(value)

    def _read_status(self) -> int:
        return self.core.status

    def _write_status(self, value: int) -> After:
        after = self.core.write_status(value & 0xFF)
        if value & 0xFF == 0:
            self._write_interrupt_ack(_ALL_REASONS)
        return after

    def _write_desc(self, half: int, value: int) -> None:
        self.core.set_queue_address("desc", half, value)

    def _write_driver(self, half: int, value: int) -> None:
        self.core.set_queue_address("driver", half, value)

    def _write_device(self, half: int, value: int) -> None:
        self.core.set_queue_address("device", half, value)

    def _read_reset(self) -> int:
        return 0  # the reset was over when the store that asked for it was

    def _write_reset(self, value: int) -> After:
        return self.core.disable_queue() if value else None

    def _read_generation(self) -> int:
        return self.core.generation

    def _ignore(self, _value: int) -> None:
        """No device has shared memory regions: which of them is selected makes no difference."""
