# SPDX-License-Identifier: Apache-2.0
"""What a device is given, and what it promises: the protocols on which KVM and devices meet.

Devices never import ``pyvmm.kvm``; the machine hands them objects that satisfy these.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Lock
    from typing import Protocol

    from pyvmm.fdt import Node

    #: What a device's write may ask the bus to run after the device's lock was dropped and before the
    #: vCPU goes on: for waiting (device reset) and for changing the bus itself (BAR move).
    After = Callable[[], None] | None
else:
    Protocol = object


class Device(Protocol):
    """Something with registers. Knows offsets only, never addresses.

    The bus calls ``read`` and ``write`` with ``lock`` held. ``size`` is 1, 2, 4 or 8 and the access lies
    wholly inside the mapping. Nothing a guest does may raise: odd accesses are counted and read as 0.
    """

    lock: Lock

    def read(self, offset: int, size: int) -> int:
        """Value of ``size`` bytes at ``offset``, little-endian, zero-extended."""

    def write(self, offset: int, size: int, value: int) -> After:
        """Store the low ``size`` bytes of ``value`` at ``offset``."""

    def reset(self) -> None:
        """Return every register to its power-on value and drop the interrupt. Call with ``lock`` held."""

    def decode(self, offset: int, size: int, is_write: bool, value: int) -> tuple[str, str]:
        """Name of the register and text of its fields, for the trace. Changes nothing."""

    def describe(self, node: Node) -> None:
        """Add the device's own properties to its node; the machine has set ``reg`` and ``interrupts``.

        Interrupt controllers are described by ``pyvmm.devicetree``: theirs tie the whole tree together.
        """


class IrqLine(Protocol):
    """One wire into the interrupt controller. Callable from any thread."""

    number: int

    def set(self, level: bool) -> None:
        """Drive the level. Idempotent."""

    def pulse(self) -> None:
        """One rising edge: high, then low."""


class HartSignal(Protocol):
    """The external-interrupt input of every hart, which a user-space interrupt controller drives.

    It is called with the controller's lock held and must not call back into it.
    """

    def __call__(self, hart: int, asserted: bool) -> None:
        """Set or clear hart ``hart``'s S-external line. Callable from any thread."""


class Sink(Protocol):
    """Where a console device's output goes. It is called with the device's lock held: it must not block."""

    def write(self, data: bytes) -> After:
        """Take all of ``data`` (one byte or more). When too much piled up, return how to wait."""


class Clock(Protocol):
    """Time as a device sees it."""

    def now_ns(self) -> int:
        """Wall-clock nanoseconds since the Unix epoch."""

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> Timer:
        """Run ``callback`` on the loop thread once ``now_ns()`` reaches ``when_ns``, never from within.

        Callable from any thread. It may come early when the wall clock is set: look at ``now_ns`` again.
        """


class Timer(Protocol):
    """A pending call of :meth:`Clock.call_at`."""

    def cancel(self) -> None:
        """Do not run it. Harmless when it has run."""
