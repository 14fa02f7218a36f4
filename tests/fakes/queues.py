# SPDX-License-Identifier: Apache-2.0
"""Where the memory of the queue tests lies, and the simplest device."""

from pyvmm.devices.virtio.chain import gather, scatter

PAGE, MIB = 4096, 1 << 20
BASE = 0x8000_0000
SEAM = BASE + MIB  # where two banks of RAM meet
END = BASE + 2 * MIB  # of RAM; then a hole
ROM = BASE + 4 * MIB  # a page of read-only memory, then one of device memory


def echo(queue):
    """Take a chain, answer with the request reversed; the request."""
    chain = queue.pop()
    request = gather(chain.readable)
    queue.complete(chain, scatter(chain.writable, request[::-1]))
    return request
