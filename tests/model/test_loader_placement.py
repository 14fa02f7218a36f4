# SPDX-License-Identifier: Apache-2.0
"""Placement of kernel, initrd and device tree, for any sizes."""

import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pyvmm.errors import ConfigError
from pyvmm.loader.placement import FDT_LIMIT, MIB, PAGE, place

GIB = 1 << 30
BASES = st.sampled_from([0, 0x4000_0000, 0x8000_0000, 0xC000_0000, 1 << 32, 1 << 36])
KERNELS = st.tuples(st.integers(0, 64 * MIB), st.integers(1, 64 * MIB))
INITRDS = st.one_of(st.just(0), st.integers(1, 64 * MIB), st.integers(1, 6 * GIB))
FDTS = st.integers(1, FDT_LIMIT)


def kernel_at(base, kernel):
    return base + kernel[0], base + sum(kernel)


def pages(start, size):
    """The whole pages that a range touches, as a half-open range."""
    return start // PAGE, -(-(start + size) // PAGE)


def apart(one, other):
    return one[1] <= other[0] or other[1] <= one[0]


@given(BASES, st.integers(1, 8192), KERNELS, INITRDS, FDTS)
@example(0x8000_0000, 8192, (2 * MIB, 32 * MIB), 4 * GIB, 4096)
def test_place_never_overlaps_and_stays_within_ram(base, mib, kernel, initrd_size, fdt_size):
    extent = kernel_at(base, kernel)
    try:
        placement = place(base, mib * MIB, extent, initrd_size, fdt_size)
    except ConfigError:
        assume(False)
    parts = [pages(extent[0], kernel[1]), pages(placement.fdt, fdt_size)]
    if initrd_size:
        assert placement.initrd[1] - placement.initrd[0] == initrd_size
        assert placement.initrd[0] % PAGE == 0
        parts.append(pages(placement.initrd[0], initrd_size))
    else:
        assert placement.initrd is None
    assert all(apart(one, other) for one in parts for other in parts if one is not other)
    assert all(base <= first * PAGE and last * PAGE <= base + mib * MIB for first, last in parts)
    assert placement.fdt % PAGE == 0
    assert all(first >= extent[1] // PAGE for first, _ in parts[1:])
    assert placement.kernel == extent


@given(BASES, KERNELS, INITRDS, FDTS)
def test_memory_said_to_be_needed_is_enough_and_one_mib_less_is_not(base, kernel, initrd_size, fdt_size):
    extent = kernel_at(base, kernel)
    with pytest.raises(ConfigError) as caught:
        place(base, PAGE, extent, initrd_size, fdt_size)
    needed = int(re.search(r"give it --mem (\d+)M or more", str(caught.value)).group(1))
    place(base, needed * MIB, extent, initrd_size, fdt_size)
    with pytest.raises(ConfigError):
        place(base, (needed - 1) * MIB, extent, initrd_size, fdt_size)


@given(st.integers(128, 2048), st.integers(1, 64 * MIB), FDTS)
def test_place_with_room_to_spare_uses_the_top_and_a_2_mib_slot(mib, initrd_size, fdt_size):
    base = 0x8000_0000
    placement = place(base, mib * MIB, (base + 2 * MIB, base + 34 * MIB), initrd_size, fdt_size)
    assert placement.fdt % (2 * MIB) == 0
    assert placement.fdt >= base + mib * MIB - 4 * MIB
    assert 0 <= placement.fdt - placement.initrd[1] < PAGE


@pytest.mark.parametrize("ram_gib", [3, 8, 64])
def test_place_keeps_below_4_gib_while_it_fits(ram_gib):
    base = 0x8000_0000
    placement = place(base, ram_gib * GIB, (base + 2 * MIB, base + 34 * MIB), GIB, 4096)
    assert placement.fdt + 4096 <= 1 << 32
    assert placement.initrd[1] <= placement.fdt


def test_place_initrd_that_does_not_fit_below_4_gib_goes_above():
    base = 0x8000_0000
    placement = place(base, 8 * GIB, (base + 2 * MIB, base + 34 * MIB), 3 * GIB, 4096)
    assert placement.initrd[1] > 1 << 32


def test_place_stays_within_the_linear_map_of_sv39():
    base = 1 << 32
    placement = place(base, 256 * GIB, (base + 2 * MIB, base + 34 * MIB), GIB, 4096)
    assert placement.fdt + 4096 <= base + 128 * GIB


def test_place_more_than_linux_can_map_is_refused():
    base = 0x8000_0000
    with pytest.raises(ConfigError, match="take 129 GiB, and Linux boots with at most 128"):
        place(base, 256 * GIB, (base + 2 * MIB, base + 34 * MIB), 129 * GIB, 4096)


def test_place_device_tree_larger_than_linux_maps_is_refused():
    base = 0x8000_0000
    with pytest.raises(ConfigError, match="shorten --params"):
        place(base, GIB, (base + 2 * MIB, base + 34 * MIB), 0, FDT_LIMIT + 1)
