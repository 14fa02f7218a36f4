# SPDX-License-Identifier: Apache-2.0
"""The trace: one line an event, and a summary by device at the end.

Nothing here is called unless a trace was asked for: exit handlers are swapped while it is on, and the board
makes traced interrupt lines, which stay.
"""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.base import IrqLine


class Trace:
    """Formats events for one machine. Callable from any thread; a line is one call of ``emit``.

    ``kinds`` are those of ``--trace``: mmio, sbi, irq. ``uptime`` is the machine's, in seconds.
    """

    def __init__(
        self, kinds: tuple[str, ...], emit: Callable[[str], None], uptime: Callable[[], float]
    ) -> None:
        self.kinds = kinds
        self.enabled = True
        self._emit = emit
        self._uptime = uptime
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], int] = {}

    def line(self, source: str, name: str, text: str) -> None:
        """One event of ``source`` (``cpu0``, ``irq``) about ``name`` (``uart.THR``). Not while disabled."""
        if not self.enabled:
            return
        device = name.partition(".")[0]
        key = (device, text.partition(" ")[0])
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + 1
        self._emit(f"[{self._uptime():12.6f}] {source:<6} {name} {text}")

    def mark(self, text: str) -> None:
        """A line that is no event: what follows in the trace happened later."""
        self._emit(f"[{self._uptime():12.6f}] mark   {text}")

    def summary(self) -> list[str]:
        """Lines: how many of which event each device saw, busiest first."""
        devices: dict[str, dict[str, int]] = {}
        for (device, what), count in self._counts.items():
            devices.setdefault(device, {})[what] = count
        lines = []
        for device, counts in sorted(devices.items(), key=lambda item: -sum(item[1].values())):
            parts = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
            lines.append(f"{device:<16} {parts}")
        return lines


class TracedLine:
    """An interrupt line that tells the trace of every change of level (protocol ``IrqLine``)."""

    __slots__ = ("_level", "_line", "_name", "_trace", "number")

    def __init__(self, line: IrqLine, name: str, trace: Trace) -> None:
        self._line = line
        self._name = f"{name}.irq{line.number}"
        self._trace = trace
        self._level = False
        self.number = line.number

    def set(self, level: bool) -> None:
        """Drive the level; only changes are shown."""
        if level != self._level:
            self._level = level
            self._trace.line("irq", self._name, "raise" if level else "lower")
        self._line.set(level)

    def pulse(self) -> None:
        """One rising edge."""
        self._trace.line("irq", self._name, "pulse")
        self._line.pulse()
