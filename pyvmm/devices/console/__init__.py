# SPDX-License-Identifier: Apache-2.0
"""Host side of virtio-console: where its ports end."""
