# SPDX-License-Identifier: Apache-2.0
"""Platform-level interrupt controller: RISC-V PLIC specification 1.0.0, as SiFive's PLIC has it.

Points that the specification leaves open, or that are easily got wrong:

- Context n is S-mode of hart n. Priorities and thresholds have three bits, like SiFive's (Linux mutes a
  context with threshold 7).
- Every context that has a source enabled is notified; the first to claim gets it.
- The threshold masks the notification only. A claim ignores it, but never returns a source of priority 0.
- A request that reached the pending bit is not taken back when the wire falls.
- A gateway stays shut from request to completion. Of the edges that come between claim and completion it
  remembers one; those that come while the request is pending are the same request.
- A completion counts for whichever context has the source enabled, and is ignored otherwise.

What a hostile guest can do: claim, complete and mask in any order, for any number. Numbers are checked
before they become bits, and each register access costs a few operations on 1024 bits per context. A wire that
a device holds high interrupts the guest forever, but nobody else.

Behind the registers is a core: ``PlicCore`` or, where the native module was built, its twin in C, whose
claims and completions, and loads of enable bits, the run loop answers without coming here
(docs/adr/0019).
"""

from __future__ import annotations

from pyvmm.devices.lines import InputLine, check_source
from pyvmm.mmio.regs import Field, RegArray, RegisterDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.pliccore import Core

MAX_CONTEXTS = 15872


class Plic(RegisterDevice):
    """Sources 1 to ``core.sources``; one context a hart.

    Lock order: device, then this one, which is the core's, then the one that a core in C has besides.
    """

    NAME = "plic"
    SIZE = 0x400_0000
    STATE = ("_bits",)

    priority = RegArray(0x0, count=1024, fields={"level": Field(0, 3)}, on_write="_write_priority")
    pending = RegArray(0x1000, count=32, access="r", on_read="_read_pending")
    enable = RegArray(0x2000, count=32 * MAX_CONTEXTS, on_read="_read_enable", on_write="_write_enable")
    threshold = RegArray(
        0x20_0000,
        count=MAX_CONTEXTS,
        stride=0x1000,
        fields={"level": Field(0, 3)},
        on_write="_write_threshold",
    )
    claim = RegArray(0x20_0004, count=MAX_CONTEXTS, stride=0x1000, on_read="_claim", on_write="_complete")

    def __init__(self, core: Core) -> None:
        super().__init__(
            priority=core.sources + 1,
            pending=(core.sources >> 5) + 1,
            enable=32 * core.contexts,
            threshold=core.contexts,
            claim=core.contexts,
        )
        self.lock = core.lock
        self._core = core
        self.reset()

    def line(self, number: int, *, edge: bool = False) -> InputLine:
        """The wire of source ``number``: level-sensitive, or taken by its rising edge.

        Raises BusError when there is no such source.
        """
        check_source(self.NAME, number, self._core.sources)
        if edge:
            self._core.set_edge(number)
        return InputLine(number, self._core.drive, self._core.pulse)

    def reset(self) -> None:
        """Power-on state. The wires stay as they are: a level that is high is pending again."""
        super().reset()
        self._core.reset()

    @property
    def _bits(self) -> list[int]:
        return self._core.bits()

    @_bits.setter
    def _bits(self, bits: list[int]) -> None:
        # Registers are restored before what is in STATE.
        self._core.load(bits, self.priority, self.threshold)

    def _write_priority(self, number: int, value: int) -> None:
        if number:
            self.priority[number] = value
            self._core.set_priority(number, value)

    def _read_pending(self, word: int) -> int:
        return self._core.pending(word)

    def _read_enable(self, index: int) -> int:
        return self._core.enabled(*divmod(index, 32))

    def _write_enable(self, index: int, value: int) -> None:
        self._core.set_enabled(*divmod(index, 32), value)

    def _write_threshold(self, context: int, value: int) -> None:
        self.threshold[context] = value
        self._core.set_threshold(context, value)

    def _claim(self, context: int) -> int:
        return self._core.claim(context)

    def _complete(self, context: int, number: int) -> None:
        self._core.complete(context, number)
