# SPDX-License-Identifier: Apache-2.0
"""A tap without an interface: each queue is one end of a packet socket, the test has the other."""

from __future__ import annotations

import os
import socket
import struct

from pyvmm.devices.net import pair
from pyvmm.devices.net import tap as tap_module
from pyvmm.devices.net.tap import Tap, TapPort


class CountedFrames:
    """What moves frames in C: notes in ``reads`` and ``writes`` each time that it asks the descriptor."""

    def __init__(self, frames, reads, writes):
        self._frames, self._reads, self._writes = frames, reads, writes

    def receive(self, *arguments):
        ending, count, *more = self._frames.receive(*arguments)
        self._reads += range(count + (ending == pair._NOT_NOW))
        return ending, count, *more

    def send(self, *arguments):
        ending, count, dropped = self._frames.send(*arguments)
        self._writes += range(count + (ending == pair._NOT_NOW))
        return ending, count, dropped


class FakeTap:
    """``end`` is the Tap of a device; ``far[i]`` the wire of its queue ``i``; ``calls`` what it was told."""

    def __init__(self, queues=1):
        self.far = []
        self.calls = []
        self.refuse = {}
        ports = []
        for _ in range(queues):
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            near.setblocking(False)
            far.setblocking(False)
            self.far.append(far)
            ports.append(TapPort(near.detach()))
        self.end = Tap("tap9", ports, self.ioctl)

    def ioctl(self, fd, request, argument):
        if request in self.refuse:
            raise OSError(self.refuse[request], os.strerror(self.refuse[request]))
        self.calls.append((request, argument))
        return b""

    @property
    def offloads(self):
        """The last word of TUNSETOFFLOAD."""
        return [argument for request, argument in self.calls if request == tap_module.TUNSETOFFLOAD][-1]

    @property
    def queue_changes(self):
        """+1 for each queue that was attached, -1 for each detached."""
        flags = [struct.unpack_from("=16xH", argument)[0] for request, argument in self.calls
                 if request == tap_module.TUNSETQUEUE]  # fmt: skip
        return [1 if flag == tap_module.IFF_ATTACH_QUEUE else -1 for flag in flags]

    def close(self):
        for far in self.far:
            far.close()
