# SPDX-License-Identifier: Apache-2.0
"""The smallest virtio device: copies what it is given into the buffer for the answer."""

from __future__ import annotations

from pyvmm.devices.virtio.chain import gather, scatter
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.mmio.regs import Reg


class Echo(VirtioDevice):
    """Two queues. On the second, chains stay with the device until ``answer`` is called."""

    NAME = "echo"
    SIZE = 8
    DEVICE_ID = 4

    LOW = Reg(0x00, 32, reset=0x1234_5678)
    BYTE = Reg(0x04, 8, reset=0x9A)

    def __init__(self) -> None:
        super().__init__((16, 16))
        self.session = None
        self.held = []
        self.stopped = 0
        self.closed = 0
        self.reset()

    def offered(self) -> int:
        return 1 << 3

    def activate(self, session) -> None:
        self.session = session

    def on_kick(self, queue) -> None:
        for chain in queue.chains():
            if queue.index:
                self.held.append((queue, chain))
            else:
                queue.complete(chain, scatter(chain.writable, gather(chain.readable)))

    def answer(self) -> None:
        """Complete what is held, as a worker's completion does."""
        self.session.post(self._answer)

    def _answer(self) -> None:
        for queue, chain in self.held:
            queue.complete(chain, scatter(chain.writable, gather(chain.readable)))
        self.held = []

    def on_queue_stop(self, queue) -> None:
        self.held = [(other, chain) for other, chain in self.held if other is not queue]

    def stop(self) -> None:
        self.stopped += 1
        self.session = None
        self.held = []

    def close(self) -> None:
        self.closed += 1
