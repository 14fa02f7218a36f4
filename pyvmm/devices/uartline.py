# SPDX-License-Identifier: Apache-2.0
"""The line's side of a 16550: what is received, when the guest takes it, and the interrupt for all of it.

The registers are ``uart8250``'s, which says how the whole behaves.
"""

from __future__ import annotations

from pyvmm.mmio.regs import RegisterDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.base import IrqLine
    from pyvmm.mmio.regs import Reg

_FIFO_SIZE = 16
_TRIGGERS = (1, 4, 8, 14)

IER_RDI, IER_THRI, _IER_RLSI, _IER_MSI = 1, 2, 4, 8
_IIR_LINE_STATUS, _IIR_RX, _IIR_RX_TIMEOUT = 0x06, 0x04, 0x0C
IIR_THRE, _IIR_MODEM, _IIR_NONE = 0x02, 0x00, 0x01
FCR_ENABLE = 1
MCR_LOOP = 16
_LSR_BI, LSR_IDLE = 0x10, 0x60
_LSR_OFFSET = 5

#: So many reads of LSR with nothing else in between mean that the guest waits for input. Linux's transmit
#: path makes two at most.
POLLS = 4


class UartLine(RegisterDevice):
    """Base of ``Uart8250``, which declares the registers and says what ``on_room`` and ``on_status`` are."""

    IER: Reg
    MCR: Reg

    def __init__(self, irq: IrqLine, on_room: Callable[[], None] | None) -> None:
        super().__init__()
        self.on_room = on_room
        self.on_status: Callable[[int, int | None], None] | None = None
        self._irq = irq
        self._refused = False
        self._idle: bool | None = None  # what on_status was told; None: nothing yet
        self._put_off = False  # the THRE interrupt, until ``ready``

    def reset(self) -> None:
        """Power-on state; bytes received and not read are gone."""
        super().reset()
        self._fcr = 0
        self._rx = b""
        self._rx_errors = b""  # LSR bits that come with each byte of _rx
        self._errors = 0  # LSR bits shown and not yet read
        self._thre = False  # THRE interrupt raised and not yet seen
        self._deltas = 0
        self._polls = 0
        self._restored()

    def receive(self, data: bytes) -> int:
        """Put ``data`` into the receive FIFO and return how many bytes of it were taken.

        After less than all, ``on_room`` tells when to offer the rest. Callable from any thread.
        """
        with self.lock:
            room = self._depth() - len(self._rx) if self._listening() else 0
            taken = min(room, len(data))
            if taken:
                self._push(data[:taken], bytes(taken))
            self._refused = taken < len(data)
            self.tell_status()
            return taken

    def send_break(self) -> bool:
        """Receive a break condition (the first half of Linux's SysRq). Callable from any thread.

        False when it was not taken; ``on_room`` tells when to try again.
        """
        with self.lock:
            taken = self._listening() and len(self._rx) < self._depth()
            if taken:
                self._push(b"\0", bytes((_LSR_BI,)))
            self._refused = not taken
            self.tell_status()
            return taken

    def ready(self) -> None:
        """The transmitter is ready for a driver that had to wait (``on_send``). Callable from any thread."""
        with self.lock:
            self._put_off = False
            self._update()

    def tell_status(self) -> None:
        """Tell ``on_status`` whether LSR is known: with nothing to receive it is. Call with the lock held.

        While the host has input that was refused, LSR must be asked for: polling is how a guest says that it
        listens.
        """
        idle = not (self._rx or self._errors or self._refused or self.MCR & MCR_LOOP)
        if idle != self._idle and self.on_status is not None:
            self._idle = idle
            self.on_status(_LSR_OFFSET, LSR_IDLE if idle else None)

    def _restored(self) -> None:
        # The line's level is not known to be what it was when the state was saved: drive it.
        self.tell_status()
        self._level = self._cause() != _IIR_NONE
        self._irq.set(self._level)

    def _update(self) -> None:
        self.tell_status()  # before the interrupt is seen
        level = self._cause() != _IIR_NONE
        if level != self._level:
            self._level = level
            self._irq.set(level)

    def _cause(self) -> int:
        """The pending and enabled interrupt of highest priority, as an IIR id."""
        ier = self.IER
        if ier & _IER_RLSI and self._errors:
            return _IIR_LINE_STATUS
        if ier & IER_RDI and self._rx:
            return _IIR_RX if len(self._rx) >= self._trigger() else _IIR_RX_TIMEOUT
        if ier & IER_THRI and self._thre and not self._put_off:
            return IIR_THRE
        if ier & _IER_MSI and self._deltas:
            return _IIR_MODEM
        return _IIR_NONE

    def _depth(self) -> int:
        return _FIFO_SIZE if self._fcr & FCR_ENABLE else 1

    def _trigger(self) -> int:
        return _TRIGGERS[self._fcr >> 6]  # bits 7:6 are 0 while the FIFO is off

    def _listening(self) -> bool:
        """Whether input from the line would reach somebody. In loopback the line is cut off."""
        return not self.MCR & MCR_LOOP and bool(self.IER & IER_RDI or self._polls >= POLLS)

    def _ask_again(self) -> None:
        """Tell the host that input it could not get rid of would be taken now."""
        if self._refused and not self._rx and self._listening() and self.on_room is not None:
            self._refused = False
            self.tell_status()
            self.on_room()

    def _push(self, data: bytes, errors: bytes) -> None:
        if not self._rx:
            self._errors |= errors[0]
        self._rx += data
        self._rx_errors += errors
        self._update()

    def _clear_rx(self) -> None:
        self._rx = self._rx_errors = b""
