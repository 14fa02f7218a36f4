# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks do with figures. The figures themselves decide no test."""

from __future__ import annotations

import pytest

from benchmarks import blk, boot, images, net, report
from benchmarks.guest import booted
from benchmarks.programs import interleaved

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
    assert boot.without_guest_ram(smaps((100, 30), (256 * 1024, 70_000), (8, 4))) == 34 * 1024


def test_smaps_without_guest_ram_is_an_error():
    with pytest.raises(SystemExit):
        boot.without_guest_ram(smaps((100, 30)))


@pytest.mark.parametrize("make", [images.stores, images.loads])
def test_image_says_its_own_size(make):
    image = make(5)
    assert int.from_bytes(image[16:24], "little") == len(image)


def test_loads_have_rows_with_ratios_of_rates():
    blk_figures = {
        f"{program}, {load}": [rate]
        for program, rate in (("pyvmm", 1.0), ("qemu", 4.0))
        for load in (blk.RANDOM_READ, blk.DEEP_READ, blk.RANDOM_WRITE, blk.SEQUENTIAL)
    }
    rows = report.rows({"blk": blk_figures})
    assert [row["ratio"] for row in rows] == [0.25] * 4
    assert [row["unit"] for row in rows] == ["/s", "/s", "/s", "MiB/s"]


def test_every_network_and_both_ways_have_rows():
    figures = {
        f"{program}, {card}, {way}": [float(MIB)]
        for program in ("pyvmm", "qemu")
        for card in (net.VHOST, net.TAP, net.USER)
        for way in (net.SEND, net.RECEIVE)
    }
    assert len(report.rows({"net": figures})) == 6


def test_figures_are_read_from_what_the_loads_print():
    assert blk.requests_a_second("randread 4096 1: 812 ops/s 3.2 MiB/s\r\n") == 812
    assert net.bytes_a_second("netload: send 33554432 ok, 40.5 MiB/s\r\n") == 40.5 * MIB


@pytest.mark.parametrize("read", [blk.requests_a_second, net.bytes_a_second])
def test_load_without_a_figure_is_an_error(read):
    with pytest.raises(SystemExit):
        read("netload: send 33554432 FAILED, 40.5 MiB/s")


SHELL = ["sh", "-c", "printf '~ # '; exec sh"]


def test_guest_runs_commands_and_returns_what_they_print():
    with booted(SHELL) as guest:
        assert guest.run("echo one") == "one\n"
        assert guest.run("seq 20000") == "".join(f"{number}\n" for number in range(1, 20_001))


def test_command_that_fails_in_the_guest_ends_the_measurement():
    with booted(SHELL) as guest, pytest.raises(SystemExit, match="'false' failed"):
        guest.run("false")


def test_guest_that_ends_ends_the_measurement():
    with booted(SHELL) as guest, pytest.raises(SystemExit, match="nothing more"):
        guest.run("exit")


def test_guest_that_says_nothing_is_ended():
    with pytest.raises(SystemExit), booted(["true"]):
        pass


def test_marker_across_two_reads_is_found(monkeypatch):
    with booted(SHELL) as guest:
        monkeypatch.setattr(guest, "read_some", iter([b"..BEG", b"IN.."]).__next__)
        assert guest.read_until(b"BEGIN") == b"..BEGIN.."


def test_rounds_are_interleaved():
    order = []
    runs = {name: lambda name=name: float(order.append(name) or len(order)) for name in "ab"}
    assert interleaved(2, runs) == {"a": [1, 3], "b": [2, 4]}
    assert order == ["a", "b", "a", "b"]
