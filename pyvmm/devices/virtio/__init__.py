# SPDX-License-Identifier: Apache-2.0
"""virtio devices: the queues they share with the guest, their transports, and the devices themselves."""
