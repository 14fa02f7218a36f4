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


class MsiLine(Protocol):
    """One message-signalled interrupt. Behind it is an eventfd, which is also where a message waits.

    While the line is ``open`` a signal reaches the guest at once; while it is not, the eventfd keeps it and
    ``open`` delivers it then. So the same mechanism serves a masked MSI-X vector, whoever signals it: a
    device model, or a kernel half (vhost) that only knows the eventfd. Callable from any thread; the
    device's lock orders the calls.
    """

    #: The eventfd. A kernel half of the device may write to it.
    fd: int

    def program(self, address: int, data: int) -> None:
        """Set the message: 32 bits of ``data`` stored at ``address``. No signal in flight is lost."""

    def open(self) -> None:
        """Deliver from now on, beginning with what waits. Idempotent."""

    def shut(self) -> None:
        """Keep signals back from now on. Idempotent."""

    def signal(self) -> None:
        """One message."""

    def pending(self) -> bool:
        """Whether a signal was kept back."""

    def clear(self) -> None:
        """Forget what was kept back. Only while shut."""

    def close(self) -> None:
        """Release the route and the eventfd."""


class Doorbell(Protocol):
    """A guest address whose stores the kernel turns into an eventfd (KVM_IOEVENTFD), without an exit."""

    #: The eventfd that a store signals; it stays the same when the doorbell moves.
    fd: int

    def place(self, address: int | None) -> None:
        """Listen at this guest-physical address, or nowhere. No store is lost that came before.

        Where the kernel refuses, stores go on causing exits: the device's register takes them.
        """

    def close(self) -> None:
        """Release it. Nothing watches ``fd`` any more."""


class Doorbells(Protocol):
    """Makes doorbells."""

    def __call__(self, size: int, value: int | None) -> Doorbell:
        """For stores of ``size`` bytes, of any value or of one. It is nowhere yet."""


class Timer(Protocol):
    """A pending call of :meth:`Clock.call_at`, or of :meth:`Loop.call_later`."""

    def cancel(self) -> None:
        """Do not run it. Harmless when it has run."""


class Watch(Protocol):
    """A descriptor that the loop watches."""

    def close(self) -> None:
        """Stop watching, before the descriptor is closed. Idempotent; callable from any thread."""

    def modify(self, events: int) -> None:
        """Wait for ``events`` (EPOLL bits) from now on."""


class Loop(Protocol):
    """The I/O thread. Callbacks run on it, with no lock held; one that raises ends the machine."""

    def watch(self, fd: int, callback: Callable[[int], None], events: int = 1) -> Watch:
        """Call ``callback(events)`` whenever ``fd`` has any of ``events``. Callable from any thread.

        Level-triggered. Raises PermissionError for a descriptor that is always ready (a regular file).
        """

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` on the loop's thread. Callable from any thread."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Run ``callback`` on the loop's thread after ``seconds``. Callable from any thread."""


class Workers(Protocol):
    """A few threads for host I/O that may block."""

    def submit(self, job: Callable[[], None]) -> None:
        """Run ``job`` on one of them. Callable from any thread. A job that raises ends the machine."""
