# SPDX-License-Identifier: Apache-2.0
"""Between the guest's console device and the host's descriptors: output, input, and what output tells."""
