# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks do with figures. The figures themselves decide no test."""

from __future__ import annotations

import os
from xml.etree import ElementTree

import pytest

from benchmarks import __main__ as command
from benchmarks import blk, boot, chart, comparisons, growth, idle, images, net, report
from benchmarks.comparisons import COMPARISONS, Figures
from benchmarks.guest import booted
from benchmarks.inside import MEASURES
from benchmarks.memory import without_guest_ram
from benchmarks.programs import MMIO, PCI, SERIAL, Bench, interleaved

MIB = 1 << 20


def memory(*ours: float, qemu: float = 70.0) -> Figures:
    return {
        "memory": {
            "pyvmm": [value * MIB for value in ours],
            "qemu": [qemu * MIB],
            "pyvmm, each further": [4.0 * MIB],
            "qemu, each further": [16.0 * MIB],
        }
    }


def serial(**rates: float) -> Figures:
    return {"serial": {program: [rate * 1024] for program, rate in rates.items()}}


def test_row_has_medians_in_its_unit_and_their_ratio():
    first, further = comparisons.rows(memory(40, 7, 14))
    assert first.ours == (14, 7, 40, 3)
    assert first.ratio == pytest.approx(0.2)
    assert further.ratio == pytest.approx(0.25)
    assert (first.met, further.met) == (True, True)


def test_row_over_its_limit_says_so():
    rows = comparisons.rows(memory(20.1))
    assert rows[0].met is False
    assert "at most 20 MiB  MISSED" in report.table(rows)


def test_ratio_over_its_goal_says_so():
    figures = {name: [2.0] for name in ("pyvmm, stores", "pyvmm, loads")}
    figures |= {"C, stores": [1.1], "C, loads": [0.9]}
    assert [row.met for row in comparisons.rows({"exits": figures})] == [True, False]


@pytest.mark.parametrize(("rate", "met"), [(9.9, False), (10.1, True)])
def test_more_of_a_rate_is_better(rate, met):
    (row,) = comparisons.rows(serial(pyvmm=rate, qemu=10.0))
    assert row.met is met
    assert row.goal_text == "ratio at least 1"


def test_the_better_of_the_peers_is_compared_with():
    assert [row.peer for row in comparisons.rows(serial(pyvmm=2.0, qemu=1.0, lkvm=3.0))] == ["lkvm"]
    assert [row.peer for row in comparisons.rows(serial(pyvmm=2.0, qemu=4.0, lkvm=3.0))] == ["qemu"]


def test_goal_of_a_run_is_another_one_beside_lkvm():
    runs = {
        f"{program}, {run}, {end}": [seconds]
        for program, seconds in (("pyvmm", 3.0), ("qemu", 6.0), ("lkvm", 4.0))
        for run in (boot.USUAL, boot.QUIET_RUN, boot.EARLY_LOG, boot.SERIAL_LOG)
        for end in (boot.USER_SPACE, boot.POWER_OFF)
        if (program, run) != ("lkvm", boot.USUAL)
    }
    rows = comparisons.rows({"whole-run": runs})
    assert [(row.peer, row.goal, row.met) for row in rows[:2]] == [("qemu", 0.4, False), ("lkvm", 1.0, True)]
    assert [row.title.split(",")[0] for row in rows] == ["run to user space"] * 4 + ["run to power-off"] * 4


def test_measure_that_was_not_made_has_no_row():
    assert comparisons.rows({}) == []


def test_figures_of_an_unusual_host_have_rows_named_after_it():
    found = {**serial(pyvmm=1.0, qemu=1.0), "serial on plic": {"pyvmm": [2048.0], "qemu": [1024.0]}}
    rows = comparisons.rows(found)
    assert [row.title for row in rows] == ["serial console, 128 KiB", "serial console, 128 KiB, plic"]
    assert [row.ratio for row in rows] == [1.0, 2.0]


def test_every_measure_can_be_made_and_is_shown():
    assert MEASURES.keys() == command.MEASURES.keys()
    assert {comparison.measure for comparison in COMPARISONS} == MEASURES.keys() - {"growth", "profile"}


@pytest.fixture
def no_kvm_here(monkeypatch):
    monkeypatch.setattr(command, "HERE", False)


def test_measures_are_made_in_the_hosts_that_suit_them(no_kvm_here):
    assert command.hosts(["net", "blk", "exits"], None) == {
        "aia": ["net", "blk"],
        "plic": ["blk"],
        "counting": ["exits"],
    }
    assert [command.place("blk", kind) for kind in ("aia", "plic")] == ["", "plic"]


def test_flavour_asked_for_is_the_only_host(no_kvm_here):
    assert command.hosts(["net", "blk"], "plic") == {"plic": ["net", "blk"]}
    assert command.place("net", "plic") == "plic"


def test_machine_with_kvm_is_the_only_host(monkeypatch):
    monkeypatch.setattr(command, "HERE", True)
    assert command.hosts(["blk", "exits"], None) == {"local": ["blk", "exits"]}
    assert command.place("blk", "local") == ""


def smaps(*mappings: tuple[int, int, int]) -> str:
    return "".join(
        f"Size: {size} kB\nKernelPageSize: 4 kB\nRss: {rss} kB\nPss: {pss} kB\nPss_Dirty: 1 kB\n"
        for size, rss, pss in mappings
    )


@pytest.mark.parametrize(("field", "kib"), [("Rss", 34), ("Pss", 19)])
def test_guest_ram_is_not_counted(field, kib):
    ram = (256 * 1024, 70_000, 70_000)
    found = smaps((100, 30, 15), ram, (8, 4, 4), ram)
    assert without_guest_ram(found, 256, field) == kib * 1024


def test_smaps_without_guest_ram_is_an_error():
    with pytest.raises(SystemExit):
        without_guest_ram(smaps((100, 30, 30)), 256, "Rss")


def test_cpu_time_is_that_of_the_process_and_of_ended_children():
    stat = "7 (a (name) b) S 1 1 1 0 -1 0 0 0 0 0 150 30 15 5 20 0 1 0 99"
    assert idle.cpu_seconds(stat) == 200 / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("make", [images.stores, images.loads])
def test_image_says_its_own_size(make):
    image = make(5)
    assert int.from_bytes(image[16:24], "little") == len(image)


def test_loads_have_rows_with_ratios_of_rates():
    blk_figures = {
        f"{program}, {transport}, {load}": [rate]
        for program, rate in (("pyvmm", 1.0), ("qemu", 4.0))
        for transport in blk.TRANSPORTS
        for load in blk.LOADS
    }
    rows = comparisons.rows({"blk": blk_figures})
    assert [row.ratio for row in rows] == [0.25] * 8
    assert [row.unit.name for row in rows] == ["/s", "/s", "/s", "MiB/s"] * 2


def test_every_network_and_both_ways_have_rows():
    figures = {
        f"{program}, {card}, {way}": [float(MIB)]
        for program in ("pyvmm", "qemu")
        for card in (net.VHOST, net.TAP, net.USER)
        for way in (net.SEND, net.RECEIVE, net.REQUESTS)
    }
    rows = comparisons.rows({"net": figures})
    assert [row.goal for row in rows] == [1.0, 1.0, 0.8, 0.8, None, None, 1.0, 1.0]


def test_figures_are_read_from_what_the_loads_print():
    assert blk.requests_a_second("randread 4096 1: 812 ops/s 3.2 MiB/s\r\n") == 812
    assert net.rate("netload: send 33554432 ok, 40.5 MiB/s\r\n") == 40.5 * MIB
    assert net.rate("netload: requests 1000 ok, 812 /s\r\n") == 812


@pytest.mark.parametrize("read", [blk.requests_a_second, net.rate])
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


def test_growth_is_shown_by_axis_and_only_where_it_was_measured():
    axis, sizes = growth.CPUS, growth.AXES[growth.CPUS]
    found = {growth.name(axis, size, growth.START_UP): [size / 2] for size in sizes}
    stores = {growth.name(growth.DEVICES, size, growth.STORE): [5e-6] for size in growth.AXES[growth.DEVICES]}
    lines = report.growth_table({"growth": found, "exits": stores}).splitlines()
    assert [line.split() for line in lines] == [
        ["vCPUs", "1", "2", "4"],
        ["exec", "to", "first", "KVM_RUN,", "s", "0.50", "1.00", "2.00"],
        ["devices", "(virtio-rng)", "1", "4", "16"],
        ["MMIO", "store,", "µs", "5.00", "5.00", "5.00"],
    ]
    assert report.growth_table({}) == ""


def test_chart_has_a_bar_for_each_row_to_the_right_of_level_where_pyvmm_is_better():
    rows = comparisons.rows({**memory(14.0), **serial(pyvmm=1.0, qemu=2.0)})
    drawn = ElementTree.fromstring(chart.svg(rows)).iter("{http://www.w3.org/2000/svg}rect")
    boxes = [box.attrib for box in drawn]
    level = float(next(box["x"] for box in boxes if box["fill"] == "#333333"))
    colours = chart.COLOURS
    first, further, console = (box for box in boxes if box["fill"] in colours.values())
    assert (first["fill"], console["fill"]) == (colours[True], colours[False])
    assert float(first["x"]) == float(further["x"]) == level
    assert float(console["x"]) + float(console["width"]) == pytest.approx(level, abs=0.2)
    assert float(first["width"]) > float(further["width"]) > float(console["width"])


def test_every_program_runs_the_same_guest(tmp_path):
    bench = Bench(tmp_path, 1)
    assert list(bench.guests("quiet", SERIAL)) == ["pyvmm", "qemu"]
    (tmp_path / "lkvm").touch()
    programs = Bench(tmp_path, 1).guests("quiet", SERIAL, disk=MMIO)
    assert list(programs) == ["pyvmm", "qemu", "lkvm"]
    for program, argv in programs.items():
        words = " ".join(argv)
        assert str(bench.image(program)) in words
        assert str(bench.initrd(full=True)) in words
        assert "512" in words


@pytest.mark.parametrize(("aia", "machine"), [(True, "virt,aia=aplic-imsic"), (False, "virt")])
def test_qemu_has_the_interrupt_controllers_of_the_host_s_kvm(tmp_path, aia, machine):
    argv = Bench(tmp_path, 1, aia=aia).qemu_linux("quiet")
    assert argv[argv.index("-M") + 1] == machine


def test_disk_is_connected_by_the_transport_asked_for(tmp_path):
    bench = Bench(tmp_path, 1)
    for transport, device in ((PCI, "virtio-blk-pci"), (MMIO, "virtio-blk-device")):
        programs = bench.guests("quiet", SERIAL, disk=transport)
        assert f"--virtio-transport={transport}" in programs["pyvmm"]
        assert f"{device},drive=disk" in programs["qemu"]
