# SPDX-License-Identifier: Apache-2.0
"""The control queue of virtio-net (virtio 1.2, section 5.1.6.5): commands of the driver, one a chain.

A command is a class, a number in it and data; its answer is one byte. What makes no sense is answered with
VIRTIO_NET_ERR, and a chain without room for the answer is given back empty.
"""

from __future__ import annotations

import struct

from pyvmm.devices.net import bits as netbits
from pyvmm.devices.virtio.bits import has
from pyvmm.devices.virtio.chain import gather, scatter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from pyvmm.devices.virtio.session import ActiveQueue

    class Controlled(Protocol):
        """What the commands act on. The methods raise OSError when the host refuses."""

        largest_pairs: int

        def set_pairs(self, count: int) -> None:
            """Use so many queue pairs."""

        def set_offloads(self, offloads: int) -> None:
            """Take frames with these GUEST feature bits."""

        def set_mac(self, mac: bytes) -> None:
            """Have another address."""


OK, ERR = b"\x00", b"\x01"
# Classes and commands, section 5.1.6.5.
MAC_ADDR_SET = (1, 1)
MQ_VQ_PAIRS_SET = (4, 0)
GUEST_OFFLOADS_SET = (5, 0)

_LONGEST = 64  # bytes that are looked at of a command; those we know are far shorter
_PAIRS = struct.Struct("<H")
_OFFLOADS = struct.Struct("<Q")
_MAC_SIZE = 6


def work_queue(queue: ActiveQueue, features: int, device: Controlled) -> None:
    """Carry out every command in the queue, as far as ``features`` were negotiated for it."""
    for chain in queue.chains():
        answer = OK if _obey(gather(chain.readable, _LONGEST), features, device) else ERR
        queue.complete(chain, scatter(chain.writable, answer))


def _obey(command: bytes, features: int, device: Controlled) -> bool:
    """Carry out one command; whether it was one and could be."""
    which, data = tuple(command[:2]), command[2:]
    try:
        if which == MQ_VQ_PAIRS_SET and has(features, netbits.MQ):
            return _set_pairs(data, device)
        if which == GUEST_OFFLOADS_SET and has(features, netbits.CTRL_GUEST_OFFLOADS):
            return _set_offloads(data, features, device)
        if which == MAC_ADDR_SET and has(features, netbits.CTRL_MAC_ADDR):
            return _set_mac(data, device)
    except OSError:  # the host refused: the driver has to know
        pass
    return False


def _set_pairs(data: bytes, device: Controlled) -> bool:
    if len(data) != _PAIRS.size:
        return False
    (count,) = _PAIRS.unpack(data)
    if not 1 <= count <= device.largest_pairs:
        return False
    device.set_pairs(count)
    return True


def _set_offloads(data: bytes, features: int, device: Controlled) -> bool:
    if len(data) != _OFFLOADS.size:
        return False
    (offloads,) = _OFFLOADS.unpack(data)
    if offloads & ~(features & netbits.GUEST_OFFLOADS) or not netbits.consistent(offloads):
        return False
    device.set_offloads(offloads)
    return True


def _set_mac(data: bytes, device: Controlled) -> bool:
    if len(data) != _MAC_SIZE or data[0] & 1:  # a group's address
        return False
    device.set_mac(data)
    return True
