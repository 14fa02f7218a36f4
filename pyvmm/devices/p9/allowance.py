# SPDX-License-Identifier: Apache-2.0
"""How much of the guest's requests is served on the thread that serves all devices."""

from __future__ import annotations

import errno

from pyvmm.devices.p9.beneath import refusal

#: In one pass over the queue: requests and the names they walk, together; and bytes copied.
STEPS, BYTES = 64, 1 << 20


class Allowance:
    """For one pass. What goes beyond it is for worker threads, so that other devices have their turn."""

    __slots__ = ("_bytes", "_steps")

    def __init__(self) -> None:
        self._steps = STEPS
        self._bytes = BYTES

    def spend(self, steps: int, size: int = 0) -> None:
        """Count that many steps and bytes, before they are done. Raises OSError (EAGAIN): too many."""
        self._steps -= steps
        self._bytes -= size
        if self._steps < 0 or self._bytes < 0:
            raise refusal(errno.EAGAIN)
