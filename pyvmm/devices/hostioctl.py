# SPDX-License-Identifier: Apache-2.0
"""ioctls on the descriptors a device has of the host: taps, vhost. A test passes a function of its own."""

from __future__ import annotations

import fcntl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Ioctl = Callable[[int, int, int | bytes], bytes]


def host_ioctl(fd: int, request: int, argument: int | bytes) -> bytes:
    """Issue it; returns a structure as the kernel left it. Raises OSError."""
    answer = fcntl.ioctl(fd, request, argument)
    return answer if isinstance(answer, bytes) else b""
