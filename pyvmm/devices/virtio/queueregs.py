# SPDX-License-Identifier: Apache-2.0
"""What a driver says about each queue before it enables it, and what of that is saved."""

from __future__ import annotations


class QueueRegisters:
    """What a driver says about one queue before it enables it. Addresses are guest-physical bytes."""

    __slots__ = ("desc", "device", "driver", "enabled", "largest", "size")

    NAMES = ("size", "desc", "driver", "device", "enabled")

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.reset()

    def reset(self) -> None:
        """Power-on values."""
        self.size = self.largest
        self.desc = self.driver = self.device = 0
        self.enabled = False

    def state(self) -> dict[str, int]:
        """What the driver set."""
        return {name: int(getattr(self, name)) for name in self.NAMES}

    def load_state(self, state: dict[str, int]) -> None:
        """Take over what ``state`` returned."""
        self.size = state["size"]
        self.desc, self.driver, self.device = state["desc"], state["driver"], state["device"]
        self.enabled = bool(state["enabled"])
