# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from pyvmm.errors import BusError
from pyvmm.mmio.ranges import Range


def test_range_knows_its_last_address():
    assert Range(0x1000, 0x100).last == 0x10FF


def test_range_may_end_at_the_last_address_there_is():
    assert Range(2**64 - 16, 16).last == 2**64 - 1


@pytest.mark.parametrize(("base", "size"), [(2**64 - 16, 17), (2**64, 1), (-1, 4)])
def test_range_beyond_the_address_space_is_refused(base, size):
    with pytest.raises(BusError, match="leaves the 64-bit address space"):
        Range(base, size)


@pytest.mark.parametrize("size", [0, -4])
def test_range_without_a_size_is_refused(size):
    with pytest.raises(BusError, match=f"size above zero, not {size}"):
        Range(0x1000, size)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (Range(0x0F00, 0x100), False),
        (Range(0x0F00, 0x101), True),
        (Range(0x1040, 1), True),
        (Range(0x10FF, 1), True),
        (Range(0x1100, 1), False),
        (Range(0x0000, 0x10000), True),
    ],
)
def test_ranges_overlap_when_they_share_an_address(other, expected):
    here = Range(0x1000, 0x100)
    assert here.overlaps(other) is expected
    assert other.overlaps(here) is expected


def test_range_contains_both_of_its_ends_and_not_its_neighbours():
    here = Range(0x1000, 0x100)
    assert [address in here for address in (0xFFF, 0x1000, 0x10FF, 0x1100)] == [False, True, True, False]


def test_ranges_are_values():
    assert Range(1, 2) == Range(1, 2) != Range(1, 3)
    assert len({Range(1, 2), Range(1, 2)}) == 1
    assert str(Range(0x1000, 0x100)) == "0x1000-0x10ff"
    assert repr(Range(0x1000, 0x100)) == "Range(0x1000, 0x100)"
