# SPDX-License-Identifier: Apache-2.0
"""NS16550A UART, as its data sheet (PC16550D) has it and as Linux's 8250 driver checks it.

It transmits in no time: THR is always empty, and every byte goes to the sink at once. What the driver
depends on: setting IER.THRI while THR is empty raises the THRE interrupt each time, and reading IIR clears it
only when it is the one reported. A few received bytes below the trigger level are reported as a character
timeout at once, since there is no reason to wait.

Input is taken only while the guest listens: its receive interrupt is enabled, or it polls LSR. A driver
clears the FIFO and reads RBR blindly when it starts, so bytes taken before would be lost; here they stay with
the host, which is told through ``on_room`` when to offer them again.

Whoever runs the guest may save it exits (``pyvmm.shortcut``): it is told when there is much output
(``on_busy``) and what LSR shows (``on_status``), and hands bytes stored to offset 0 in one piece
(``transmit``). So the device tree says that the transmit FIFO is deep; it is as deep as one likes.

What a hostile guest can do: write any register at any time, flood THR, leave the input full. The FIFO is
bounded by 16 bytes, the flood by the sink (which makes the vCPU wait, not the host grow), and input that is
not read stays where it is.
"""

from __future__ import annotations

from pyvmm.mmio.regs import Bit, Field, Reg, RegisterDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.base import After, IrqLine, Sink
    from pyvmm.fdt import Node

CLOCK_HZ = 3_686_400
_FIFO_SIZE = 16
# For drivers that read the device tree: so many bytes may be stored without a look at LSR in between.
_TRANSMIT_FIFO_SIZE = 128
_TRIGGERS = (1, 4, 8, 14)

_IER_RDI, _IER_THRI, _IER_RLSI, _IER_MSI = 1, 2, 4, 8
_IIR_LINE_STATUS, _IIR_RX, _IIR_RX_TIMEOUT, _IIR_THRE, _IIR_MODEM, _IIR_NONE = (
    0x06,
    0x04,
    0x0C,
    0x02,
    0x00,
    0x01,
)
_IIR_FIFO = 0xC0
_FCR_ENABLE, _FCR_CLEAR_RX, _FCR_KEPT = 1, 2, 0xC9
_LCR_DLAB = 0x80
_MCR_DTR, _MCR_RTS, _MCR_OUT1, _MCR_OUT2, _MCR_LOOP = 1, 2, 4, 8, 16
_LSR_DR, _LSR_OE, _LSR_BI, _LSR_IDLE, _LSR_FIFO_ERROR = 0x01, 0x02, 0x10, 0x60, 0x80
_LSR_OFFSET = 5
_LSR_IN_FIFO = 0x1C  # parity, framing, break: errors that belong to a byte
_MSR_CTS, _MSR_DSR, _MSR_RI, _MSR_DCD = 0x10, 0x20, 0x40, 0x80
_MSR_CONNECTED = _MSR_DCD | _MSR_DSR | _MSR_CTS

# So many reads of LSR with nothing else in between mean that the guest waits for input. Linux's transmit
# path makes two at most.
_POLLS = 4
# So many bytes stored one by one are much output.
_MUCH = 32


class Uart8250(RegisterDevice):
    """One serial port. Output goes to ``sink``, input comes from ``receive`` and ``send_break``.

    ``on_room`` is called, with the lock held, when input that was refused fits again. It must only schedule:
    calling back from within would deadlock. The same goes for ``on_busy``, and for ``on_status(offset,
    value)``: a load of a byte at ``offset`` yields ``value`` from now on and changes nothing, until it is
    called with None; and for ``on_send``: a driver has begun to send, and is interrupted only once somebody
    calls ``ready``, so that it has more to send then.

    Lock order: this one, then the interrupt controller's and the sink's.
    """

    NAME = "uart"
    SIZE = 8
    STATE = ("_fcr", "_rx", "_rx_errors", "_errors", "_thre", "_deltas", "_polls")

    RBR = Reg(0, 8, access="r", on_read="_read_rbr")
    THR = Reg(0, 8, access="w", on_write="_write_thr")
    DLL = Reg(0, 8, when="LCR.dlab")
    IER = Reg(
        1, 8, fields={"rdi": Bit(0), "thri": Bit(1), "rlsi": Bit(2), "msi": Bit(3)}, on_write="_write_ier"
    )
    DLM = Reg(1, 8, when="LCR.dlab")
    IIR = Reg(2, 8, access="r", fields={"id": Field(0, 4), "fifo": Field(6, 2)}, on_read="_read_iir")
    FCR = Reg(
        2,
        8,
        access="w",
        fields={
            "enable": Bit(0),
            "clear_rx": Bit(1),
            "clear_tx": Bit(2),
            "dma": Bit(3),
            "trigger": Field(6, 2),
        },
        on_write="_write_fcr",
    )
    LCR = Reg(
        3,
        8,
        fields={
            "length": Field(0, 2),
            "stop": Bit(2),
            "parity": Field(3, 3),
            "break": Bit(6),
            "dlab": Bit(7),
        },
    )
    MCR = Reg(
        4,
        8,
        fields={"dtr": Bit(0), "rts": Bit(1), "out1": Bit(2), "out2": Bit(3), "loop": Bit(4)},
        on_write="_write_mcr",
    )
    LSR = Reg(
        5,
        8,
        access="r",
        fields={
            "dr": Bit(0),
            "oe": Bit(1),
            "pe": Bit(2),
            "fe": Bit(3),
            "bi": Bit(4),
            "thre": Bit(5),
            "temt": Bit(6),
            "fifo_error": Bit(7),
        },
        on_read="_read_lsr",
    )
    MSR = Reg(
        6,
        8,
        access="r",
        fields={
            "dcts": Bit(0),
            "ddsr": Bit(1),
            "teri": Bit(2),
            "ddcd": Bit(3),
            "cts": Bit(4),
            "dsr": Bit(5),
            "ri": Bit(6),
            "dcd": Bit(7),
        },
        on_read="_read_msr",
    )
    SCR = Reg(7, 8)

    def __init__(self, irq: IrqLine, sink: Sink, on_room: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.on_room = on_room
        self.on_busy: Callable[[], None] | None = None
        self.on_status: Callable[[int, int | None], None] | None = None
        self.on_send: Callable[[], None] | None = None
        self._irq = irq
        self._sink = sink
        self._refused = False
        self._stored = 0
        self._idle: bool | None = None  # what on_status was told; None: nothing yet
        self._put_off = False  # the THRE interrupt, until ``ready``
        self.reset()

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

    @staticmethod
    def describe(node: Node) -> None:
        """Devicetree properties (binding 8250)."""
        node["compatible"] = "ns16550a"
        node["clock-frequency"] = CLOCK_HZ
        node["fifo-size"] = _TRANSMIT_FIFO_SIZE
        node["tx-threshold"] = 0

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

    def transmit(self, data: bytes) -> After:
        """Carry out stores of single bytes to offset 0, oldest first, as ``write`` would. Takes the lock."""
        with self.lock:
            if self.LCR & _LCR_DLAB:
                self.DLL = data[-1]
                return None
            if self.MCR & _MCR_LOOP:
                for value in data:
                    self._write_thr(value)
                return None
            return self._send(data)

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
        idle = not (self._rx or self._errors or self._refused or self.MCR & _MCR_LOOP)
        if idle != self._idle and self.on_status is not None:
            self._idle = idle
            self.on_status(_LSR_OFFSET, _LSR_IDLE if idle else None)

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
        if ier & _IER_RDI and self._rx:
            return _IIR_RX if len(self._rx) >= self._trigger() else _IIR_RX_TIMEOUT
        if ier & _IER_THRI and self._thre and not self._put_off:
            return _IIR_THRE
        if ier & _IER_MSI and self._deltas:
            return _IIR_MODEM
        return _IIR_NONE

    def _depth(self) -> int:
        return _FIFO_SIZE if self._fcr & _FCR_ENABLE else 1

    def _trigger(self) -> int:
        return _TRIGGERS[self._fcr >> 6]  # bits 7:6 are 0 while the FIFO is off

    def _listening(self) -> bool:
        """Whether input from the line would reach somebody. In loopback the line is cut off."""
        return not self.MCR & _MCR_LOOP and bool(self.IER & _IER_RDI or self._polls >= _POLLS)

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

    def _read_rbr(self) -> int:
        if not self._rx:
            return 0
        value = self._rx[0]
        self._rx = self._rx[1:]
        self._rx_errors = self._rx_errors[1:]
        if self._rx:
            self._errors |= self._rx_errors[0]
        self._update()
        self._ask_again()
        return value

    def _write_thr(self, value: int) -> After:
        data = bytes((value,))
        if self.MCR & _MCR_LOOP:
            self._polls = 0
            self._thre = True
            self._loop_back(data)
            return None
        self._stored += 1
        if not self._stored % _MUCH and self.on_busy is not None:
            self.on_busy()
        return self._send(data)

    def _send(self, data: bytes) -> After:
        self._polls = 0
        self._thre = True
        self._update()
        return self._sink.write(data)

    def _loop_back(self, data: bytes) -> None:
        if len(self._rx) >= self._depth():
            # The FIFO keeps what it has; without it the new byte overwrites the old one.
            self._errors |= _LSR_OE
            if not self._fcr & _FCR_ENABLE:
                self._clear_rx()
                self._push(data, b"\0")
            self._update()
        else:
            self._push(data, b"\0")

    def _write_ier(self, value: int) -> None:
        self._polls = 0
        if value & ~self.IER & _IER_THRI:
            self._thre = True
            if not value & _IER_RDI:  # a driver that tests the port, and is not to find it broken
                self._put_off = False
            elif self.on_send is not None and not self._put_off:
                self._put_off = True
                self.on_send()
        self.IER = value
        self._update()
        self._ask_again()

    def _read_iir(self) -> int:
        self._polls = 0
        cause = self._cause()
        if cause == _IIR_THRE:
            self._thre = False
            self._update()
        return cause | _IIR_FIFO if self._fcr & _FCR_ENABLE else cause

    def _write_fcr(self, value: int) -> None:
        """The other bits are taken only together with the enable bit, and switching that off clears.

        On a chip switching it on clears too. Here the byte that came before is kept: Linux enables its
        interrupt first and the FIFO later, and what the host sent must not be lost in between.
        """
        self._polls = 0
        switched_off = self._fcr & ~value & _FCR_ENABLE
        if switched_off or (value & _FCR_ENABLE and value & _FCR_CLEAR_RX):
            self._clear_rx()
        self._fcr = value & _FCR_KEPT if value & _FCR_ENABLE else 0
        self._update()
        self._ask_again()

    def _write_mcr(self, value: int) -> None:
        self._polls = 0
        before = self._modem_lines()
        self.MCR = value
        after = self._modem_lines()
        changed = before ^ after
        self._deltas |= (changed & (_MSR_DCD | _MSR_DSR | _MSR_CTS) | before & changed & _MSR_RI) >> 4
        self._update()
        self._ask_again()

    def _modem_lines(self) -> int:
        mcr = self.MCR
        if not mcr & _MCR_LOOP:
            return _MSR_CONNECTED
        return (
            (_MSR_DCD if mcr & _MCR_OUT2 else 0)
            | (_MSR_RI if mcr & _MCR_OUT1 else 0)
            | (_MSR_DSR if mcr & _MCR_DTR else 0)
            | (_MSR_CTS if mcr & _MCR_RTS else 0)
        )

    def _read_lsr(self) -> int:
        value = _LSR_IDLE | self._errors
        if self._rx:
            value |= _LSR_DR
        if self._fcr & _FCR_ENABLE and (self._errors & _LSR_IN_FIFO or any(self._rx_errors[1:])):
            value |= _LSR_FIFO_ERROR
        if self._errors:
            self._errors = 0
            self._update()
        if self._polls < _POLLS:
            self._polls += 1
            self._ask_again()
        return value

    def _read_msr(self) -> int:
        self._polls = 0
        value = self._modem_lines() | self._deltas
        if self._deltas:
            self._deltas = 0
            self._update()
        return value
