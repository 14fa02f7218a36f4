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

from pyvmm.devices.uartline import (
    FCR_ENABLE,
    IER_RDI,
    IER_THRI,
    IIR_THRE,
    LSR_IDLE,
    MCR_LOOP,
    POLLS,
    UartLine,
)
from pyvmm.mmio.regs import Bit, Field, Reg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.base import After, IrqLine, Sink
    from pyvmm.fdt import Node

CLOCK_HZ = 3_686_400
# For drivers that read the device tree: so many bytes may be stored without a look at LSR in between.
_TRANSMIT_FIFO_SIZE = 128

_IIR_FIFO = 0xC0
_FCR_CLEAR_RX, _FCR_KEPT = 2, 0xC9
_LCR_DLAB = 0x80
_MCR_DTR, _MCR_RTS, _MCR_OUT1, _MCR_OUT2 = 1, 2, 4, 8
_LSR_DR, _LSR_OE, _LSR_FIFO_ERROR = 0x01, 0x02, 0x80
_LSR_IN_FIFO = 0x1C  # parity, framing, break: errors that belong to a byte
_MSR_CTS, _MSR_DSR, _MSR_RI, _MSR_DCD = 0x10, 0x20, 0x40, 0x80
_MSR_CONNECTED = _MSR_DCD | _MSR_DSR | _MSR_CTS

# So many bytes stored one by one are much output.
_MUCH = 32


class Uart8250(UartLine):
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
        super().__init__(irq, on_room)
        self.on_busy: Callable[[], None] | None = None
        self.on_send: Callable[[], None] | None = None
        self._sink = sink
        self._stored = 0
        self.reset()

    @staticmethod
    def describe(node: Node) -> None:
        """Devicetree properties (binding 8250)."""
        node["compatible"] = "ns16550a"
        node["clock-frequency"] = CLOCK_HZ
        node["fifo-size"] = _TRANSMIT_FIFO_SIZE
        node["tx-threshold"] = 0

    def transmit(self, data: bytes) -> After:
        """Carry out stores of single bytes to offset 0, oldest first, as ``write`` would. Takes the lock."""
        with self.lock:
            if self.LCR & _LCR_DLAB:
                self.DLL = data[-1]
                return None
            if self.MCR & MCR_LOOP:
                for value in data:
                    self._write_thr(value)
                return None
            return self._send(data)

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
        if self.MCR & MCR_LOOP:
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
            if not self._fcr & FCR_ENABLE:
                self._clear_rx()
                self._push(data, b"\0")
            self._update()
        else:
            self._push(data, b"\0")

    def _write_ier(self, value: int) -> None:
        self._polls = 0
        if value & ~self.IER & IER_THRI:
            self._thre = True
            if not value & IER_RDI:  # a driver that tests the port, and is not to find it broken
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
        if cause == IIR_THRE:
            self._thre = False
            self._update()
        return cause | _IIR_FIFO if self._fcr & FCR_ENABLE else cause

    def _write_fcr(self, value: int) -> None:
        """The other bits are taken only together with the enable bit, and switching that off clears.

        On a chip switching it on clears too. Here the byte that came before is kept: Linux enables its
        interrupt first and the FIFO later, and what the host sent must not be lost in between.
        """
        self._polls = 0
        switched_off = self._fcr & ~value & FCR_ENABLE
        if switched_off or (value & FCR_ENABLE and value & _FCR_CLEAR_RX):
            self._clear_rx()
        self._fcr = value & _FCR_KEPT if value & FCR_ENABLE else 0
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
        if not mcr & MCR_LOOP:
            return _MSR_CONNECTED
        return (
            (_MSR_DCD if mcr & _MCR_OUT2 else 0)
            | (_MSR_RI if mcr & _MCR_OUT1 else 0)
            | (_MSR_DSR if mcr & _MCR_DTR else 0)
            | (_MSR_CTS if mcr & _MCR_RTS else 0)
        )

    def _read_lsr(self) -> int:
        value = LSR_IDLE | self._errors
        if self._rx:
            value |= _LSR_DR
        if self._fcr & FCR_ENABLE and (self._errors & _LSR_IN_FIFO or any(self._rx_errors[1:])):
            value |= _LSR_FIFO_ERROR
        if self._errors:
            self._errors = 0
            self._update()
        if self._polls < POLLS:
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
