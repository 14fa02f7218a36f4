# SPDX-License-Identifier: Apache-2.0
"""QEMU's educational PCI device: a factorial, DMA, interrupts (QEMU's docs/specs/edu.rst).

It deviates from QEMU's in three places. DMA reaches all of memory unless ``dma_mask`` says otherwise: with
QEMU's 28 bits it could reach no RAM of a RISC-V machine. A transfer outside of the device's buffer moves
nothing. And a factorial takes as long as its first 34 factors, from where on the result is 0.

What a hostile guest can do: name any address and any length for DMA. A transfer is at most the 4 KiB buffer,
all of it inside the buffer and inside guest memory, or nothing is moved and it is counted. One transfer and
one factorial are under way at a time.
"""

from __future__ import annotations

from functools import partial

from pyvmm.devices.pci.bar import Bar
from pyvmm.devices.pci.function import PciFunction
from pyvmm.devices.pci.header import Identity
from pyvmm.devices.pci.msi import Msi
from pyvmm.devices.settings import number
from pyvmm.errors import GuestAccessError
from pyvmm.mmio.regs import Bit, Reg, RegisterDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pyvmm.devices.base import Loop, Timer, Workers
    from pyvmm.devices.pci.capability import MsiLines
    from pyvmm.devices.settings import Setting, Settings
    from pyvmm.memory import GuestMemory

_IDENTITY = Identity(0x1234, 0x11E8, 0x00_FF_00, revision=0x10, subsystem_vendor=0x1AF4, subsystem=0x1100)
_IDENTIFICATION = 0x0100_00ED

_WIDE = 0x80  # from here on registers have 64 bits
_COMPUTING, _INTERRUPT_WHEN_DONE = 1 << 0, 1 << 7
_RUN, _TO_RAM, _INTERRUPT_AT_END = 1 << 0, 1 << 1, 1 << 2
_FACTORIAL_DONE, _DMA_DONE = 0x001, 0x100  # bits of INTERRUPT_STATUS

_BUFFER_BASE, _BUFFER_SIZE = 0x40000, 0x1000
_DMA_SECONDS = 0.1
_LOW = 0xFFFF_FFFF
_ALL_MEMORY = (1 << 64) - 1
_ZERO_FROM = 34  # the factorial of 34 and above is 0 modulo 2**32


class Edu(RegisterDevice):
    """The registers behind BAR 0. ``function`` is what goes onto the PCI bus; its lock is this one's.

    Locks: the loop's and the workers' callbacks take it; calling these with it held is fine.
    """

    NAME = "edu"
    SIZE = 1 << 20
    STATE = ("_buffer",)
    SETTINGS: ClassVar[dict[str, Setting]] = {
        "dma_mask": number("address bits that DMA has [all]", 0, _ALL_MEMORY, default=_ALL_MEMORY)
    }
    POSITIONAL: ClassVar[tuple[str, ...]] = ()
    SHARED_MEMORY: ClassVar[bool] = False

    IDENTIFICATION = Reg(0x00, access="r", reset=_IDENTIFICATION)
    LIVENESS = Reg(0x04, on_write="_write_liveness")
    FACTORIAL = Reg(0x08, on_write="_write_factorial")
    STATUS = Reg(0x20, fields={"computing": Bit(0, "r"), "interrupt_when_done": Bit(7)})
    INTERRUPT_STATUS = Reg(0x24, access="r")
    INTERRUPT_RAISE = Reg(0x60, access="w", on_write="_raise")
    INTERRUPT_ACKNOWLEDGE = Reg(0x64, access="w", on_write="_acknowledge")
    DMA_SOURCE = Reg(0x80, 64, on_write="_write_dma_source")
    DMA_DESTINATION = Reg(0x88, 64, on_write="_write_dma_destination")
    DMA_COUNT = Reg(0x90, 64, on_write="_write_dma_count")
    DMA_COMMAND = Reg(
        0x98,
        64,
        fields={"run": Bit(0), "to_ram": Bit(1), "interrupt_at_end": Bit(2)},
        on_write="_write_dma_command",
    )

    def __init__(
        self,
        memory: GuestMemory,
        loop: Loop,
        workers: Workers,
        msi_lines: MsiLines | None = None,
        *,
        dma_mask: int = _ALL_MEMORY,
    ) -> None:
        """``dma_mask``: address bits that DMA has. Without ``msi_lines`` there is no MSI capability."""
        super().__init__()
        #: Transfers that moved nothing: a range outside of the buffer or of memory, or no bus mastering.
        self.refused = 0
        self._memory = memory
        self._loop = loop
        self._workers = workers
        self._dma_mask = dma_mask
        self._timer: Timer | None = None
        self._epoch = 0  # what was begun before a reset does not end after it
        self.function = PciFunction(self.NAME, _IDENTITY)
        self.function.add_bar(Bar(0, self.SIZE, self))
        self._msi = None if msi_lines is None else Msi(msi_lines)
        if self._msi is not None:
            self.function.add_capability(self._msi)
        self.reset()

    @classmethod
    def check(cls, settings: Settings) -> None:
        """It needs nothing of the host."""

    def reset(self) -> None:
        """Registers and buffer zero; what is under way is abandoned."""
        super().reset()
        self._buffer = bytes(_BUFFER_SIZE)
        self._abandon()
        self.function.set_intx(False)

    def close(self) -> None:
        """Drop the timer: the loop calls no more."""
        with self.lock:
            self._abandon()

    def read(self, offset: int, size: int) -> int:
        """As every device's; what is no register, or not of its size, reads all ones."""
        return super().read(offset, _width(offset, size)) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """As every device's."""
        super().write(offset, _width(offset, size), value & (1 << 8 * size) - 1)

    def decode(self, offset: int, size: int, is_write: bool, value: int) -> tuple[str, str]:
        """As every device's."""
        return super().decode(offset, _width(offset, size), is_write, value)

    def _odd_read(self) -> int:
        self.odd += 1
        return -1

    def _abandon(self) -> None:
        self._epoch += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _restored(self) -> None:
        self._buffer = self._buffer[:_BUFFER_SIZE].ljust(_BUFFER_SIZE, b"\0")
        self._abandon()
        if self.STATUS & _COMPUTING:
            self._compute()
        if self.DMA_COMMAND & _RUN:
            self._start_timer()

    def _write_liveness(self, value: int) -> None:
        self.LIVENESS = ~value & _LOW

    # Interrupts

    def _raise(self, bits: int) -> None:
        """A message every time, or the wire until all is acknowledged."""
        self.INTERRUPT_STATUS |= bits
        if self.INTERRUPT_STATUS and not (self._msi is not None and self._msi.signal()):
            self.function.set_intx(True)

    def _acknowledge(self, bits: int) -> None:
        self.INTERRUPT_STATUS &= ~bits
        if not self.INTERRUPT_STATUS:
            self.function.set_intx(False)

    # Factorial

    def _write_factorial(self, value: int) -> None:
        if not self.STATUS & _COMPUTING:
            self.FACTORIAL = value
            self.STATUS |= _COMPUTING
            self._compute()

    def _compute(self) -> None:
        self._workers.submit(partial(self._worker, self.FACTORIAL, self._epoch))

    def _worker(self, number: int, epoch: int) -> None:
        result = factorial(number)
        with self.lock:
            if epoch == self._epoch:
                self.FACTORIAL = result
                self.STATUS &= ~_COMPUTING
                if self.STATUS & _INTERRUPT_WHEN_DONE:
                    self._raise(_FACTORIAL_DONE)

    # DMA. Registers do not change while a transfer runs.

    def _write_dma_source(self, value: int) -> None:
        if not self.DMA_COMMAND & _RUN:
            self.DMA_SOURCE = value

    def _write_dma_destination(self, value: int) -> None:
        if not self.DMA_COMMAND & _RUN:
            self.DMA_DESTINATION = value

    def _write_dma_count(self, value: int) -> None:
        if not self.DMA_COMMAND & _RUN:
            self.DMA_COUNT = value

    def _write_dma_command(self, value: int) -> None:
        if value & _RUN and not self.DMA_COMMAND & _RUN:
            self.DMA_COMMAND = value
            self._start_timer()

    def _start_timer(self) -> None:
        self._timer = self._loop.call_later(_DMA_SECONDS, partial(self._on_timer, self._epoch))

    def _on_timer(self, epoch: int) -> None:
        with self.lock:
            if epoch != self._epoch:
                return
            try:
                self._transfer()
            except GuestAccessError:
                self.refused += 1
            self._timer = None
            self.DMA_COMMAND &= ~_RUN
            if self.DMA_COMMAND & _INTERRUPT_AT_END:
                self._raise(_DMA_DONE)

    def _transfer(self) -> None:
        """Copy between memory and buffer. Raises GuestAccessError, having copied nothing."""
        to_ram = bool(self.DMA_COMMAND & _TO_RAM)
        address, inside = self.DMA_SOURCE, self.DMA_DESTINATION
        if to_ram:
            address, inside = inside, address
        address, start, count = address & self._dma_mask, inside - _BUFFER_BASE, self.DMA_COUNT
        if start < 0 or start + count > _BUFFER_SIZE:
            raise GuestAccessError(f"{count} bytes at 0x{inside:x} are not in edu's buffer")
        if not self.function.bus_master:
            raise GuestAccessError("edu may not access memory: bus mastering is off")
        if to_ram:
            self._memory.write(address, self._buffer[start : start + count])
        else:
            data = self._memory.read(address, count)
            self._buffer = self._buffer[:start] + data + self._buffer[start + count :]


def factorial(number: int) -> int:
    """``number``! modulo 2**32."""
    if number >= _ZERO_FROM:
        return 0
    result = 1
    for factor in range(2, number + 1):
        result = result * factor & _LOW
    return result


def _width(offset: int, size: int) -> int:
    """The register's size for an access of ``size`` bytes: four bytes of a 64-bit one stand for all of it."""
    return 8 if size == 4 and offset >= _WIDE else size
