# SPDX-License-Identifier: Apache-2.0
"""Devices whose queues somebody else works: the kernel (vhost) or another process (vhost-user)."""
