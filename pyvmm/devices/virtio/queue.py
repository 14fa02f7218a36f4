# SPDX-License-Identifier: Apache-2.0
"""What every virtqueue offers, whatever its layout, and where the driver put it (virtio 1.2, section 2.6)."""

from __future__ import annotations

from pyvmm.errors import QueueError
from pyvmm.memory import RAM
from pyvmm.ring import NATIVE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, Protocol

    from pyvmm.devices.virtio.chain import Chain
    from pyvmm.memory import GuestMemory
    from pyvmm.ring import Ring
else:
    Protocol = object

#: The largest queue of either layout, in descriptors.
MAX_SIZE = 32768


class QueueSetup:
    """What the driver told the transport: the size in descriptors, three guest addresses, features."""

    __slots__ = ("desc", "device", "driver", "event_idx", "indirect", "packed", "size")

    def __init__(
        self,
        size: int,
        desc: int,
        driver: int,
        device: int,
        *,
        event_idx: bool = False,
        indirect: bool = False,
        packed: bool = False,
    ) -> None:
        self.size = size
        self.desc = desc  # descriptor area: the table, or the packed ring
        self.driver = driver  # driver area: the available ring, or the driver's event suppression
        self.device = device  # device area: the used ring, or the device's event suppression
        self.event_idx = event_idx  # VIRTIO_F_EVENT_IDX was negotiated
        self.indirect = indirect  # VIRTIO_F_INDIRECT_DESC was
        self.packed = packed  # VIRTIO_F_RING_PACKED was


class Frames(Protocol):
    """Moves frames of virtio-net in C, between a queue and a descriptor that takes and gives one a call.

    What is unusual is left to Python untouched, and ends the call. The first number that is returned says why
    it ended: see ``devices.net.pair``. The interrupt is up to the caller.
    """

    def receive(
        self, fd: int, spare: bytearray, mergeable: bool, most: int, most_bytes: int, /
    ) -> tuple[int, int, int, int, int, int]:
        """Receive up to ``most`` frames, none after ``most_bytes``.

        Returns why it ended, how many frames were received, how many of them were dropped, and their bytes;
        the size of one more for which the driver's buffers had too little room, and how much of it is in
        ``spare``: the rest of it is in the buffers, which are not taken yet.
        """

    def send(self, fd: int, most: int, /) -> tuple[int, int, int]:
        """Send up to ``most`` frames: why it ended, how many were given back, how many of them not sent."""


class Virtqueue(Protocol):
    """The device's side of a queue. Chains may be completed in any order.

    One thread works it at a time, under the device's lock. What the guest writes into it is checked when
    it is read; the methods raise QueueError for what no driver may do, and the device then needs a reset.
    """

    size: int
    #: VIRTIO_F_EVENT_IDX was negotiated: each side hears once of what it asked for, and then nothing more.
    event_idx: bool
    #: None: frames of a network are for Python to move.
    frames: Frames | None

    def pop(self) -> Chain | None:
        """The next buffer the driver made available, or None. Raises QueueError."""

    def complete(self, chain: Chain, written: int) -> None:
        """Give ``chain`` back, ``written`` bytes into its writable views. Its views end here."""

    def complete_all(self, completions: list[tuple[Chain, int]]) -> None:
        """Give several chains back at once: the driver sees all of them, or none yet."""

    def should_interrupt(self) -> bool:
        """Whether the driver wants to hear of what was completed since the last call. Ask once a pass."""

    def pause_notify(self) -> None:
        """Tell the driver that it need not notify: a hint, notifications may still come.

        With the event index that is so anyway, once the driver did what it was asked to.
        """

    def resume_notify(self) -> bool:
        """Ask to hear of the next buffer. True when there is one already: then nothing is asked for."""

    def close(self) -> None:
        """Let go of guest memory. No other method may be called after it; chains close by themselves."""

    def state(self) -> dict[str, int]:
        """Where the device stands. Complete with no chain in flight: those were popped, and are not in it."""

    def load_state(self, state: dict[str, int]) -> None:
        """Go on from where ``state()`` was taken, on the same guest memory."""


def make_queue(memory: GuestMemory, ring: Ring, setup: QueueSetup) -> Virtqueue:
    """A fresh queue where the driver put it. Raises QueueError when no queue can be there."""
    if setup.packed:
        from pyvmm.devices.virtio.packed import PackedQueue

        queue: PackedQueue | SplitQueue = PackedQueue(memory, ring, setup)
    else:
        from pyvmm.devices.virtio.split import SplitQueue

        queue = SplitQueue(memory, ring, setup)
    if ring.backend != NATIVE:
        return queue
    from pyvmm.devices.virtio.nativequeue import in_c

    return in_c(queue, memory, setup)


def area(memory: GuestMemory, address: int, size: int, align: int) -> tuple[memoryview, int]:
    """A writable view of one area of a queue, and its host address. Raises QueueError.

    It must be RAM, and of one bank: the index words in it are accessed through their host addresses, later
    on without another check.
    """
    if address % align:
        raise QueueError(f"the virtqueue area at 0x{address:x} is not aligned to {align} bytes")
    for bank in memory.banks:
        if bank.kind == RAM and bank.base <= address and address + size <= bank.end:
            start = address - bank.base
            return bank.view[start : start + size], bank.host_address + start
    raise QueueError(f"the virtqueue area at 0x{address:x} of {size} bytes is not in one bank of RAM")


def wants_event(event: int, new: int, old: int) -> bool:
    """Whether going from ``old`` to ``new`` passed ``event``: free-running 16-bit counters (2.7.10)."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


def queue_closed(*_: object) -> NoReturn:
    """What takes the place of a closed queue's memory accesses: the memory may be gone."""
    raise ValueError("the virtqueue is closed")
