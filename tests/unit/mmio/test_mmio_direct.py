# SPDX-License-Identifier: Apache-2.0
"""Which accesses of a bus are answered directly. How the run loop does it: test_nativerun.py."""

import ctypes

import pytest

from pyvmm.errors import BusError
from pyvmm.mmio.direct import DirectAnswers
from pyvmm.mmio.ranges import Range


def test_more_ranges_than_there_is_room_for_are_refused():
    direct = DirectAnswers()
    for number in range(64):
        direct.add(Range(0x1000 * number, 8), 1, 2, ctypes.c_uint64())
    with pytest.raises(BusError, match=r"room for 64 ranges .*, not for 0x40000"):
        direct.add(Range(0x4_0000, 8), 1, 2, ctypes.c_uint64())


def test_range_that_is_added_while_somebody_watches_waits_for_the_end_of_that():
    direct = DirectAnswers()
    direct.stop("a trace")
    direct.add(Range(0x1000, 8), 1, 2, ctypes.c_uint64())
    first = ctypes.c_uint64.from_address(direct.address)
    assert first.value == 2**64 - 1
    direct.resume("a trace")
    assert first.value == 0x1000
