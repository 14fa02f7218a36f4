# SPDX-License-Identifier: Apache-2.0
"""One buffer of a virtqueue (a descriptor chain), and helpers over the lists of views it is made of."""

from __future__ import annotations

from pyvmm.errors import GuestAccessError, QueueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pyvmm.memory import GuestMemory


class Chain:
    """What the driver made available with one head: first what the device reads, then what it writes.

    The views are guest memory itself: copy what must not change under your hands, and copy it once. They
    are valid until ``complete``. The driver may cut them anywhere, so never rely on where one ends.
    """

    __slots__ = ("head", "readable", "slots", "writable")

    def __init__(self, head: int, readable: list[memoryview], writable: list[memoryview], slots: int) -> None:
        self.head = head  # what the used element names: the first descriptor, or the buffer id when packed
        self.readable = readable  # read-only
        self.writable = writable
        self.slots = slots  # how many descriptors of the ring itself it takes

    def close(self) -> None:
        """Let go of guest memory. Views passed on before stay valid, and pin it."""
        self.readable.clear()
        self.writable.clear()


def make_chain(
    memory: GuestMemory,
    head: int,
    readable: list[tuple[int, int]],
    writable: list[tuple[int, int]],
    slots: int,
) -> Chain:
    """The chain of these (address, length) pairs. Raises QueueError when they are not the guest's memory."""
    try:
        return Chain(head, memory.iovec(readable), memory.iovec(writable, writable=True), slots)
    except GuestAccessError as error:
        raise QueueError(f"in a virtqueue buffer: {error}") from error


def total(views: Iterable[memoryview]) -> int:
    """Bytes in all views together."""
    return sum(map(len, views))


def gather(views: Iterable[memoryview], limit: int | None = None) -> bytes:
    """A copy of all bytes, or of the first ``limit``: stable, whatever the guest does to them meanwhile."""
    if limit is None:
        return b"".join(views)
    parts = []
    for view in views:
        if limit <= 0:
            break
        parts.append(view[:limit])
        limit -= len(view)
    return b"".join(parts)


def scatter(views: Iterable[memoryview], data: bytes | bytearray | memoryview) -> int:
    """Copy as much of ``data`` as fits into writable ``views``; returns how many bytes did."""
    done, left = 0, len(data)
    for view in views:
        if not left:
            break
        count = min(len(view), left)
        view[:count] = data[done : done + count]
        done += count
        left -= count
    return done


def split(views: Sequence[memoryview], at: int) -> tuple[list[memoryview], list[memoryview]]:
    """The first ``at`` bytes, and the rest; the view across the cut becomes two. Either may be empty."""
    for index, view in enumerate(views):
        if at <= 0:
            return [*views[:index]], [*views[index:]]
        if at < len(view):
            return [*views[:index], view[:at]], [view[at:], *views[index + 1 :]]
        at -= len(view)
    return [*views], []
