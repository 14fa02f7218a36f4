# SPDX-License-Identifier: Apache-2.0
"""One buffer of a virtqueue (a descriptor chain), and helpers over the lists of views it is made of."""

from __future__ import annotations

from pyvmm.errors import GuestAccessError, QueueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pyvmm.memory import GuestMemory

# Flags of a descriptor, in the ring and in an indirect table, of either layout.
NEXT, WRITE, INDIRECT = 1, 2, 4

#: What is wrong with a chain in which the device reads after it wrote: written parts come last.
MIXED = "a readable descriptor came after a writable one"

#: Descriptors that one indirect table may hold, unless the queue is larger. Drivers must keep to the queue
#: size, but Linux's do not with small queues; this is as many buffers as preadv takes.
MAX_INDIRECT = 1024
MAX_BYTES = 1 << 32  # of one chain (2.7.4)


class Chain:
    """What the driver made available with one head: first what the device reads, then what it writes.

    The views are guest memory itself: copy what must not change under your hands, and copy it once. They
    are valid until ``complete``. The driver may cut them anywhere, so never rely on where one ends.
    """

    __slots__ = ("fault", "head", "readable", "slots", "writable")

    def __init__(self, head: int, readable: list[memoryview], writable: list[memoryview], slots: int) -> None:
        self.head = head  # what the used element names: the first descriptor, or the buffer id when packed
        self.readable = readable  # read-only
        self.writable = writable
        self.slots = slots  # how many descriptors of the ring itself it takes
        self.fault = ""  # why a buffer of it cannot be had

    def add(self, memory: GuestMemory, address: int, length: int, writes: int) -> None:
        """Add a buffer that the queue did not find in the main bank of RAM."""
        try:
            views = memory.iovec(((address, length),), writable=bool(writes))
        except GuestAccessError as error:
            self.fault = str(error)
        else:
            (self.writable if writes else self.readable).extend(views)

    def refusal(self, size: int) -> QueueError:
        """What to raise for a chain with a fault, or of more than MAX_BYTES."""
        reason = f"in a virtqueue buffer: {self.fault}" if size <= MAX_BYTES else f"a chain of {size} bytes"
        return QueueError(reason)

    def close(self) -> None:
        """Let go of guest memory. Views passed on before stay valid, and pin it."""
        self.readable.clear()
        self.writable.clear()


def read_table(memory: GuestMemory, address: int, length: int, queue_size: int) -> bytes:
    """A copy of an indirect table, as long as one may be. Raises QueueError."""
    if not 0 < length <= 16 * max(queue_size, MAX_INDIRECT) or length % 16:
        raise QueueError(f"an indirect table of {length} bytes")
    try:
        return memory.read(address, length)
    except GuestAccessError as error:
        raise QueueError(f"an indirect table: {error}") from error


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
