# SPDX-License-Identifier: Apache-2.0
"""What a failed test says about its guests."""

from __future__ import annotations

from collections.abc import Iterable

from pyvmm.control.client import ControlError, ControlGone
from pyvmm.testing import artifacts
from pyvmm.testing.errors import GuestError, GuestExited
from pyvmm.testing.vm import Vm

_SHOWN = ("pc", "ra", "sp", "gp", "tp", "a0", "a1", "a2", "a7", "scause", "stval", "sepc")


def sections(vms: Iterable[Vm], error: BaseException | None) -> list[tuple[str, str]]:
    """Titles and texts for the report of a test that failed with ``error``."""
    found = []
    shown = error.tail if isinstance(error, GuestError) else None
    for vm in vms:
        tail = vm.log.tail()
        lines = [f"state: {vm.state}" + (f" ({vm.end.reason}: {vm.end.message})" if vm.end else "")]
        if vm.boot_seconds is not None:
            lines.append(f"booted in {vm.boot_seconds:.1f} s")
        lines += _registers(vm)
        lines += ["pyvmm said:", *(f"    {line}" for line in vm.said()[-20:])] if vm.said() else []
        if tail and tail != shown:
            lines += ["the console's last lines:", *(f"    {line}" for line in tail)]
        trace = artifacts.trace_tail(vm.folder)
        lines += ["the trace's last lines:", *(f"    {line}" for line in trace)] if trace else []
        lines += [f"{artifacts.CONSOLE} is not complete: {vm.log.incomplete}"] if vm.log.incomplete else []
        lines += ["artifacts:", *(f"    {path}" for path in artifacts.listing(vm.folder))]
        found.append((f"guest {vm.name}", "\n".join(lines)))
    return found


def attachments(vms: Iterable[Vm]) -> str:
    """The artifacts as CI servers find them in the output of a test."""
    paths = [path for vm in vms for path in artifacts.listing(vm.folder)]
    return "".join(f"[[ATTACHMENT|{path}]]\n" for path in paths)


def properties(vm: Vm) -> list[tuple[str, object]]:
    """What junit's file says about a guest."""
    found: list[tuple[str, object]] = [("guest host", vm.frame.place.name)]
    if vm.log.banner:
        found.append(("guest kernel", vm.log.banner))
    if vm.boot_seconds is not None:
        found.append(("guest boot seconds", round(vm.boot_seconds, 3)))
    return found


def _registers(vm: Vm) -> list[str]:
    """Where its harts are, as long as it is there."""
    lines = []
    try:
        for cpu in range(int(str(vm.config.cpus or 1))):
            registers = vm.registers(cpu)
            shown = [f"{name}=0x{registers[name]:x}" for name in _SHOWN if name in registers]
            lines.append(f"cpu{cpu}: {' '.join(shown)}")
    except (ControlError, ControlGone, GuestExited):
        pass
    return lines
