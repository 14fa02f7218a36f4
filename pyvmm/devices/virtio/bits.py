# SPDX-License-Identifier: Apache-2.0
"""Numbers every virtio device and transport shares (virtio 1.2, sections 2.1, 2.2 and 6)."""

# Device status.
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128

# Feature bits that belong to rings and transports, not to a kind of device.
F_INDIRECT_DESC = 28
F_EVENT_IDX = 29
F_VERSION_1 = 32
F_RING_PACKED = 34
F_RING_RESET = 40

#: What every device offers besides its own. ACCESS_PLATFORM is not among them: guest addresses are
#: guest-physical, there is no IOMMU.
TRANSPORT_FEATURES = (
    1 << F_INDIRECT_DESC | 1 << F_EVENT_IDX | 1 << F_VERSION_1 | 1 << F_RING_PACKED | 1 << F_RING_RESET
)

LARGEST_QUEUE = 32768


def has(features: int, bit: int) -> bool:
    """Whether ``features`` holds bit number ``bit``."""
    return bool(features >> bit & 1)


def feature_set(*numbers: int) -> int:
    """The feature word with these bit numbers."""
    word = 0
    for number in numbers:
        word |= 1 << number
    return word
