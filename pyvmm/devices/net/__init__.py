# SPDX-License-Identifier: Apache-2.0
"""Host side of virtio-net: taps, passt, vhost-net, and the queue pairs worked here."""
