# SPDX-License-Identifier: Apache-2.0
"""What a virtqueue in Python and its twin in C go on from."""

from __future__ import annotations

import ctypes


class Position(ctypes.Structure):
    """Where the device stands in a queue. _native_queue.h has the same structure, and works on it, too.

    ``next`` is what to take next, ``used`` where to put what is used: free-running 16-bit indices when split,
    else places in the ring, with the wrap counters there.
    """

    next: int
    used: int
    wrap: int  # packed
    used_wrap: int  # packed
    seen: int  # split: the available index last seen
    in_flight: int  # packed: slots taken and not given back
    signalled: int  # split: the used index of the last should_interrupt
    unsignalled: int  # packed: slots given back since the last should_interrupt

    _fields_ = (
        ("next", ctypes.c_uint32),
        ("used", ctypes.c_uint32),
        ("wrap", ctypes.c_uint32),
        ("used_wrap", ctypes.c_uint32),
        ("seen", ctypes.c_uint32),
        ("in_flight", ctypes.c_int32),
        ("signalled", ctypes.c_uint32),
        ("unsignalled", ctypes.c_uint32),
    )
