# SPDX-License-Identifier: Apache-2.0
"""Host side of virtio-blk: disk images, their locks, and work on them."""
