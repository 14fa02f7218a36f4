# SPDX-License-Identifier: Apache-2.0
"""Messages as the trace shows them."""

from __future__ import annotations

from pyvmm.messages import KernelMsiLine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.base import Loop
    from pyvmm.kvm.routing import GsiRouting
    from pyvmm.kvm.vm import Vm
    from pyvmm.suspend import Suspension
    from pyvmm.trace import Trace


class TracedMsiLine(KernelMsiLine):
    """A message that tells the trace when a device model sends it, where to, and how it travels.

    What a kernel half of the device sends never comes here.
    """

    __slots__ = ("_name", "_trace")

    def __init__(
        self, vm: Vm, routing: GsiRouting, loop: Loop, suspension: Suspension, *, name: str, trace: Trace
    ) -> None:
        super().__init__(vm, routing, loop, suspension)
        self._name = name
        self._trace = trace

    def signal(self) -> None:
        """One message."""
        self._trace.line("irq", self._name, f"signal 0x{self.address:x} 0x{self.data:x} ({self.route})")
        super().signal()
