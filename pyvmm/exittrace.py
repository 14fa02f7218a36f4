# SPDX-License-Identifier: Apache-2.0
"""Exits as the trace shows them: replaces entries in a vCPU thread's table of exit handlers.

A guest pays for this only while it is installed: every traced exit then costs a register read, to say where
the guest was.
"""

from __future__ import annotations

from pyvmm.kvm import regs, uapi
from pyvmm.sbi import call_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.mmio.bus import Bus
    from pyvmm.runner import VcpuThread
    from pyvmm.sbi import Sbi
    from pyvmm.trace import Trace


def install(thread: VcpuThread, bus: Bus, sbi: Sbi, trace: Trace) -> Callable[[], None]:
    """Show the kinds of exits that ``trace`` is for; returns what ends that. Safe while the thread runs."""
    traced = _Traced(thread, bus, sbi, trace)
    shown = {}
    if "mmio" in trace.kinds:
        shown[uapi.KVM_EXIT_MMIO] = traced.mmio
    if "sbi" in trace.kinds:
        shown[uapi.KVM_EXIT_RISCV_SBI] = traced.sbi
    before = {reason: thread.handlers[reason] for reason in shown}
    thread.handlers.update(shown)
    return lambda: thread.handlers.update(before)


class _Traced:
    def __init__(self, thread: VcpuThread, bus: Bus, sbi: Sbi, trace: Trace) -> None:
        self._vcpu = thread.vcpu
        self._settle = thread.settle
        self._bus = bus
        self._sbi = sbi
        self._trace = trace
        self._source = f"cpu{thread.vcpu.id}"

    def mmio(self) -> None:
        self._settle()  # what was noted down before the trace began
        address, length, is_write, value = self._vcpu.mmio()
        if is_write:
            # Shown first: causes come before effects, and the store may select another bank of registers.
            self._access("write", address, length, value)
            self._bus.write(address, length, value)
        else:
            value = self._bus.read(address, length)
            self._vcpu.answer_mmio(length, value)
            self._access("read", address, length, value)

    def sbi(self) -> None:
        extension, function, args = self._vcpu.sbi()
        error, value = self._sbi.call(extension, function, args)
        self._vcpu.answer_sbi(error, value)
        shown = " ".join(f"0x{arg:x}" for arg in args[:3])
        self._line(f"sbi.{call_name(extension, function)}", f"call {shown} -> {error} 0x{value:x}")

    def _access(self, what: str, address: int, length: int, value: int) -> None:
        mapping = self._bus.find(address)
        if mapping is None:
            self._line(f"unclaimed.0x{address:x}", f"{what} {length} 0x{value:x}")
            return
        offset = address - mapping.range.base
        register, fields = mapping.device.decode(offset, length, what == "write", value)
        self._line(f"{mapping.name}.{register}", f"{what} {length} 0x{value:x} {fields}".rstrip())

    def _line(self, name: str, text: str) -> None:
        pc = self._vcpu.get_reg(regs.core("pc"))
        self._trace.line(self._source, name, f"{text} pc=0x{pc:x}")
