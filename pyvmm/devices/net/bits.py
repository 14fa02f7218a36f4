# SPDX-License-Identifier: Apache-2.0
"""Numbers of virtio-net (virtio 1.2, section 5.1)."""

from __future__ import annotations

from pyvmm.devices.virtio.bits import feature_set

# Feature bits, section 5.1.3.
CSUM, GUEST_CSUM, CTRL_GUEST_OFFLOADS, MTU, MAC = 0, 1, 2, 3, 5
GUEST_TSO4, GUEST_TSO6, GUEST_ECN = 7, 8, 9
HOST_TSO4, HOST_TSO6, HOST_ECN = 11, 12, 13
MRG_RXBUF, STATUS, CTRL_VQ, MQ, CTRL_MAC_ADDR = 15, 16, 17, 22, 23

#: What no driver may take without the other (5.1.3.1): feature, what it needs (any one of these).
NEEDS = (
    (GUEST_TSO4, (GUEST_CSUM,)),
    (GUEST_TSO6, (GUEST_CSUM,)),
    (GUEST_ECN, (GUEST_TSO4, GUEST_TSO6)),
    (HOST_TSO4, (CSUM,)),
    (HOST_TSO6, (CSUM,)),
    (HOST_ECN, (HOST_TSO4, HOST_TSO6)),
    (MQ, (CTRL_VQ,)),
    (CTRL_MAC_ADDR, (CTRL_VQ,)),
)

#: What the guest may let the device leave out of frames it receives, and may change its mind about.
GUEST_OFFLOADS = feature_set(GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN)
#: What a tap adds to virtio-net.
TAP_FEATURES = GUEST_OFFLOADS | feature_set(CSUM, HOST_TSO4, HOST_TSO6, HOST_ECN, CTRL_GUEST_OFFLOADS)

# The header of every frame, 5.1.6: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers.
HEADER_SIZE = 12
NUM_BUFFERS_AT = 10
F_DATA_VALID = 2  # in flags: the checksums are right

#: Ethernet's addresses and type.
ETHERNET_HEADER = 14
#: An IP packet of 64 KiB, a VLAN tag, and the headers.
LARGEST_FRAME = HEADER_SIZE + ETHERNET_HEADER + 4 + 65535

# Status bits of the configuration space.
LINK_UP = 1


def consistent(features: int) -> bool:
    """Whether everything that one of these features needs is among them."""
    return all(
        not features >> bit & 1 or any(features >> other & 1 for other in needed) for bit, needed in NEEDS
    )
