# SPDX-License-Identifier: Apache-2.0
"""Guests for the fake KVM, beyond single exits: steps that go on for ever, or answer to what comes in."""

from __future__ import annotations

import errno
import time

from fakes.kernel import Exit, FakeVcpu, Step, mmio_read, mmio_write, sbi

from pyvmm import layout

RBR = THR = layout.UART_BASE
IER, FCR, LSR = layout.UART_BASE + 1, layout.UART_BASE + 2, layout.UART_BASE + 5
DBCN, SUSP = 0x4442434E, 0x53555350


def prints(text: bytes) -> list[Step]:
    """Stores to the UART."""
    return [mmio_write(THR, 1, byte) for byte in text]


def prints_much(text: bytes = b"") -> list[Step]:
    """Stores to the UART until they are no exits any more, 32 dots, and then ``text`` without exits."""
    return [*prints(b"." * 32), _wait_for_zone, *prints(text)]


def _wait_for_zone(vcpu: FakeVcpu) -> int | None:
    """Go on once KVM notes stores to the UART down."""
    while not vcpu.vm.zones:
        if vcpu._kicked():
            vcpu.script.appendleft(_wait_for_zone)
            return errno.EINTR
        time.sleep(0.001)
    return None


def suspend() -> Exit:
    """System suspend, to be resumed at the start of RAM."""
    return sbi(SUSP, 0, 0, layout.RAM_BASE, 0)


def idle(vcpu: FakeVcpu) -> int:
    """Does nothing, until its machine stops it."""
    vcpu.script.append(idle)
    return vcpu.wait_for_kick()


def flood(vcpu: FakeVcpu) -> int:
    """Prints 64 KiB of zeros through DBCN again and again."""
    vcpu.script.append(flood)
    return sbi(DBCN, 0, 65536, layout.RAM_BASE, 0)(vcpu)


def wait_for_uart(vcpu: FakeVcpu) -> int | None:
    """WFI until the UART's wire into the in-kernel APLIC is high."""
    while not dict(vcpu.vm.lines).get(layout.UART_IRQ):
        if vcpu._kicked():
            vcpu.script.appendleft(wait_for_uart)
            return errno.EINTR
        time.sleep(0.001)
    return None


def echo(vcpu: FakeVcpu) -> None:
    """Prints every key, by interrupt; ``q`` ends the script, which powers off."""
    vcpu.script += [mmio_write(IER, 1, 1), *_next_key()]


def _next_key() -> list[Step]:
    return [wait_for_uart, mmio_read(RBR, 1), _echo_key]


def _echo_key(vcpu: FakeVcpu) -> None:
    key = vcpu.answers[-1]
    if key != ord("q"):
        vcpu.script += [mmio_write(THR, 1, key), *_next_key()]
