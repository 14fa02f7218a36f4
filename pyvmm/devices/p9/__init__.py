# SPDX-License-Identifier: Apache-2.0
"""A file server for one folder, speaking 9P2000.L. It knows frames in buffers, nothing of queues."""
