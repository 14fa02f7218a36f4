# SPDX-License-Identifier: Apache-2.0
"""The structures of <linux/vhost.h> that vhost-user's messages have taken over."""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.devices.virtio.queue import QueueSetup
    from pyvmm.memory import Bank, GuestMemory

U64 = struct.Struct("=Q")
VRING_STATE = struct.Struct("=II")  # index, number
_VRING_ADDR = struct.Struct("=IIQQQQ")  # index, flags, then our addresses: desc, used, avail; log
_MEMORY_HEAD = struct.Struct("=II")  # regions, padding
_MEMORY_REGION = struct.Struct("=QQQQ")  # guest address, size, our address, flags or offset in the file


def vring_addresses(index: int, setup: QueueSetup, memory: GuestMemory) -> bytes:
    """Where the three parts of split ring ``index`` are. Raises GuestAccessError."""
    size = setup.size
    return _VRING_ADDR.pack(
        index,
        0,
        memory.host_address(setup.desc, 16 * size),
        memory.host_address(setup.device, 6 + 8 * size),
        memory.host_address(setup.driver, 6 + 2 * size),
        0,
    )


def memory_table(banks: Sequence[Bank]) -> bytes:
    """Guest memory that may hold rings and buffers."""
    regions = [_MEMORY_REGION.pack(bank.base, bank.size, bank.host_address, 0) for bank in banks]
    return _MEMORY_HEAD.pack(len(regions), 0) + b"".join(regions)
