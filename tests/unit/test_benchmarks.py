# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks do with figures. The figures themselves decide no test."""

from __future__ import annotations

import pytest

from benchmarks import images, inside, report

MIB = 1 << 20


def memory(*ours: float, qemu: float = 70.0) -> report.Figures:
    return {"memory": {"pyvmm": [value * MIB for value in ours], "qemu": [qemu * MIB]}}


def test_row_has_medians_in_its_unit_and_their_ratio():
    (row,) = report.rows(memory(40, 7, 14))
    assert row["pyvmm"] == {"median": 14, "least": 7, "most": 40, "runs": 3}
    assert row["ratio"] == pytest.approx(0.2)
    assert row["met"] is True


def test_row_over_its_goal_says_so():
    (row,) = report.rows(memory(25.1))
    assert row["met"] is False
    assert "MISSED" in report.table(memory(25.1))


def test_ratio_over_its_goal_says_so():
    figures = {name: [2.0] for name in ("pyvmm, stores", "pyvmm, loads")}
    figures |= {"C, stores": [0.4], "C, loads": [0.3]}
    assert [row["met"] for row in report.rows({"exits": figures})] == [True, False]


def test_measure_that_was_not_made_has_no_row():
    assert report.rows({}) == []


def smaps(*mappings: tuple[int, int]) -> str:
    return "".join(f"Size: {size} kB\nKernelPageSize: 4 kB\nRss: {rss} kB\n" for size, rss in mappings)


def test_guest_ram_is_not_counted():
    assert inside.without_guest_ram(smaps((100, 30), (256 * 1024, 70_000), (8, 4))) == 34 * 1024


def test_smaps_without_guest_ram_is_an_error():
    with pytest.raises(SystemExit):
        inside.without_guest_ram(smaps((100, 30)))


@pytest.mark.parametrize("make", [images.stores, images.loads])
def test_image_says_its_own_size(make):
    image = make(5)
    assert int.from_bytes(image[16:24], "little") == len(image)
