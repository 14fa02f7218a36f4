# SPDX-License-Identifier: Apache-2.0
"""Goldfish real-time clock: time in nanoseconds since 1970, an alarm, one interrupt.

Reading TIME_LOW latches TIME_HIGH. A 64-bit value is written high half first; the low half completes it, sets
the time or arms the alarm. The time the guest sets is kept as an offset to the host's, so it goes on while
the guest does not run.

What a hostile guest can do: set any time and any alarm, as often as it likes. Time wraps at 64 bits; an alarm
is one timer however far away it is, and it is looked at again once a day, so no timer is ever set for
centuries.
"""

from __future__ import annotations

from pyvmm.mmio.regs import Bit, Reg, RegisterDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.base import Clock, IrqLine, Timer
    from pyvmm.fdt import Node

_MASK = (1 << 64) - 1
_LOW = 0xFFFF_FFFF
_LONGEST_WAIT_NS = 24 * 3600 * 10**9


class GoldfishRtc(RegisterDevice):
    """The clock and its alarm. Lock order: this one, then the clock's and the interrupt controller's."""

    NAME = "rtc"
    SIZE = 0x1000
    STATE = ("_offset", "_latched_high", "_set_high", "_alarm_high", "_alarm", "_armed", "_pending")

    TIME_LOW = Reg(0x00, on_read="_read_time_low", on_write="_write_time_low")
    TIME_HIGH = Reg(0x04, on_read="_read_time_high", on_write="_write_time_high")
    ALARM_LOW = Reg(0x08, on_read="_read_alarm_low", on_write="_write_alarm_low")
    ALARM_HIGH = Reg(0x0C, on_read="_read_alarm_high", on_write="_write_alarm_high")
    IRQ_ENABLED = Reg(0x10, fields={"enabled": Bit(0)}, on_write="_write_irq_enabled")
    CLEAR_ALARM = Reg(0x14, access="w", on_write="_write_clear_alarm")
    ALARM_STATUS = Reg(0x18, access="r", fields={"armed": Bit(0)}, on_read="_read_alarm_status")
    CLEAR_INTERRUPT = Reg(0x1C, access="w", on_write="_write_clear_interrupt")

    def __init__(self, irq: IrqLine, clock: Clock) -> None:
        super().__init__()
        self._irq = irq
        self._clock = clock
        self._timer: Timer | None = None
        self.reset()

    def reset(self) -> None:
        """Host time, no alarm."""
        super().reset()
        self._offset = 0
        self._latched_high = 0
        self._set_high = 0
        self._alarm_high = 0
        self._alarm = 0
        self._armed = False
        self._pending = False
        self._restored()

    @staticmethod
    def describe(node: Node) -> None:
        """Devicetree properties (binding google,goldfish-rtc)."""
        node["compatible"] = "google,goldfish-rtc"

    def close(self) -> None:
        """Drop the timer: the clock calls no more."""
        with self.lock:
            self._stop_timer()

    def _restored(self) -> None:
        self._check_alarm()
        self._update()

    def _now(self) -> int:
        return self._clock.now_ns() + self._offset & _MASK

    def _update(self) -> None:
        self._irq.set(self._pending and bool(self.IRQ_ENABLED))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_alarm(self) -> None:
        """Fire the alarm if it is due, else look again when it will be."""
        self._stop_timer()
        if not self._armed:
            return
        wait = self._alarm - self._now()
        if wait <= 0:
            self._armed = False
            self._pending = True
            self._update()
        else:
            when = self._clock.now_ns() + min(wait, _LONGEST_WAIT_NS)
            self._timer = self._clock.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        # It may have been cancelled while it waited for the lock; then this merely looks once more.
        with self.lock:
            self._check_alarm()

    def _read_time_low(self) -> int:
        now = self._now()
        self._latched_high = now >> 32
        return now & _LOW

    def _read_time_high(self) -> int:
        return self._latched_high

    def _write_time_high(self, value: int) -> None:
        self._set_high = value

    def _write_time_low(self, value: int) -> None:
        self._offset = (self._set_high << 32 | value) - self._clock.now_ns()
        self._check_alarm()

    def _read_alarm_low(self) -> int:
        return self._alarm & _LOW

    def _read_alarm_high(self) -> int:
        return self._alarm >> 32

    def _write_alarm_high(self, value: int) -> None:
        self._alarm_high = value

    def _write_alarm_low(self, value: int) -> None:
        self._alarm = self._alarm_high << 32 | value
        self._armed = True
        self._check_alarm()

    def _write_irq_enabled(self, value: int) -> None:
        self.IRQ_ENABLED = value
        self._update()

    def _write_clear_alarm(self, _value: int) -> None:
        self._armed = False
        self._check_alarm()

    def _read_alarm_status(self) -> int:
        return int(self._armed)

    def _write_clear_interrupt(self, _value: int) -> None:
        self._pending = False
        self._update()
