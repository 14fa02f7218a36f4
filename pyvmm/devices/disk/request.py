# SPDX-License-Identifier: Apache-2.0
"""One request to a disk, on its way from the driver to the host and back (virtio 1.2, section 5.2.6)."""

from __future__ import annotations

from pyvmm.devices.virtio.chain import split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.virtio.chain import Chain
    from pyvmm.devices.virtio.session import ActiveQueue

    Job = Callable[[], None]

# What is answered.
OK, IOERR, UNSUPP = 0, 1, 2


class Request:
    """One request from the time its chain was taken until it is completed. ``status`` is its answer.

    ``data`` are views for what is read, ``room`` bytes.
    """

    __slots__ = ("_chain", "_queue", "_ring", "_status_byte", "data", "job", "room", "status")

    def __init__(self, queue: ActiveQueue, chain: Chain, size: int) -> None:
        """``size``: bytes of the chain's writable part, of which the last one takes the status."""
        self._queue = queue
        self._ring = queue.ring
        self._chain = chain
        self.room = size - 1
        writable = chain.writable
        if len(writable[-1]) == 1:  # as drivers lay it out
            self.data, self._status_byte = writable[:-1], writable[-1]
        else:
            self.data, (self._status_byte,) = split(writable, self.room)
        self.status = OK
        self.job: Job | None = None  # for a worker

    @property
    def stale(self) -> bool:
        """Its queue was reset, and the memory is the driver's again."""
        return self._queue.ring is not self._ring

    def perform(self) -> None:
        """Do the host I/O."""
        if self.job is not None:
            try:
                self.job()
            except OSError:
                self.status = IOERR

    def finish(self) -> None:
        """Complete the chain."""
        if not self.stale:
            self._status_byte[0] = self.status
            self._queue.complete(self._chain, self.room + 1)
