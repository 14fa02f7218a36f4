# SPDX-License-Identifier: Apache-2.0
"""The tree of a machine: its contents with libfdt, its form with dt-validate."""

import re
import struct
import subprocess
import sys
from pathlib import Path

import libfdt
import pytest

from pyvmm import isa, layout
from pyvmm.devicetree import EDGE_RISING, Aplic, Chosen, Cpu, Device, Imsic, Plic, build
from pyvmm.fdt import flatten, to_dts

MIB = 1 << 20
BINDINGS = Path(__file__).parent.parent / "data" / "bindings"
RAM = [(layout.RAM_BASE, 256 * MIB)]
EXTENSIONS = (*isa.DEFAULT, "ssaia", "zicbom", "zicboz", "zicbop", "zba", "svinval")
SEED = bytes(range(32))


def describe_uart(node):
    node["compatible"] = "ns16550a"
    node["clock-frequency"] = 3686400


def describe_rtc(node):
    node["compatible"] = "google,goldfish-rtc"


UART = Device("serial", layout.UART_BASE, layout.UART_SIZE, layout.UART_IRQ, describe_uart, alias="serial0")
RTC = Device("rtc", layout.RTC_BASE, layout.RTC_SIZE, layout.RTC_IRQ, describe_rtc)
CHOSEN = Chosen("console=ttyS0", "serial0:115200n8", (0x8400_0000, 0x8410_0000), SEED)
CHIPS = {
    "plic": lambda harts: (Plic(layout.PLIC_BASE, layout.PLIC_SIZE, 31), None),
    "aplic": lambda harts: (Aplic(layout.APLIC_BASE, layout.APLIC_SIZE + 32 * harts, 31), None),
    "aia": lambda harts: (Aplic(layout.APLIC_BASE, layout.APLIC_SIZE, 31), Imsic(layout.IMSIC_BASE, 255)),
}


def machine(chip="plic", harts=2, devices=(UART, RTC), chosen=CHOSEN):
    cpu = Cpu(EXTENSIONS, 10_000_000, "sv57", cbom=64, cboz=64, cbop=64)
    wired, imsic = CHIPS[chip](harts)
    return build(cpu, harts, RAM, wired, imsic, devices=devices, chosen=chosen)


class Blob:
    """A tree as the guest sees it."""

    def __init__(self, tree):
        self.fdt = libfdt.FdtRo(flatten(tree.root))

    def bytes(self, path, name):
        return bytes(self.fdt.getprop(self.fdt.path_offset(path), name))

    def cells(self, path, name):
        return [cell for (cell,) in struct.iter_unpack(">I", self.bytes(path, name))]

    def strings(self, path, name):
        return self.bytes(path, name).decode().rstrip("\0").split("\0")

    def has(self, path, name):
        return self.fdt.hasprop(self.fdt.path_offset(path), name)

    def phandle(self, path):
        return self.fdt.get_phandle(self.fdt.path_offset(path))


@pytest.fixture
def validate(tmp_path):
    def run(*trees):
        paths = [tmp_path / f"{number}.dtb" for number in range(len(trees))]
        for path, tree in zip(paths, trees, strict=True):
            path.write_bytes(flatten(tree.root))
        program = str(Path(sys.executable).parent / "dt-validate")
        command = [program, "-m", "-s", str(BINDINGS), *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    return run


@pytest.mark.parametrize("chip", CHIPS)
def test_dt_validate_finds_nothing_wrong(chip, validate):
    assert validate(*(machine(chip, harts) for harts in (1, 2, 5, 128))) == ""


def test_dt_validate_notices_what_the_bindings_forbid(validate):
    tree = machine("aia")
    tree.wired["riscv,num-sources"] = 0
    tree.soc["bogus"] = 1
    output = validate(tree)
    assert "riscv,num-sources: 0 is less than the minimum" in output
    assert "bogus" in output


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("harts", [1, 4, 128])
def test_build_twice_gives_equal_bytes(chip, harts):
    assert flatten(machine(chip, harts).root) == flatten(machine(chip, harts).root)
    assert to_dts(machine(chip, harts).root) == to_dts(machine(chip, harts).root)


def test_build_without_options_is_the_same_every_time_and_has_no_seed():
    wired, _ = CHIPS["plic"](1)
    blob = Blob(build(Cpu(), 1, RAM, wired))
    assert blob.strings("/chosen", "bootargs") == [""]
    assert not blob.has("/chosen", "rng-seed")
    assert not blob.has("/chosen", "linux,initrd-start")
    assert not blob.has("/chosen", "stdout-path")


def test_chosen_tells_the_kernel_what_it_was_given():
    blob = Blob(machine())
    assert blob.strings("/chosen", "bootargs") == ["console=ttyS0"]
    assert blob.strings("/chosen", "stdout-path") == ["serial0:115200n8"]
    assert blob.strings("/aliases", "serial0") == ["/soc/serial@10000000"]
    assert blob.cells("/chosen", "linux,initrd-start") == [0, 0x8400_0000]
    assert blob.cells("/chosen", "linux,initrd-end") == [0, 0x8410_0000]
    assert blob.bytes("/chosen", "rng-seed") == SEED


def test_choose_again_with_other_numbers_keeps_the_size():
    tree = machine()
    before = flatten(tree.root)
    tree.choose(Chosen("console=ttyS0", "serial0:115200n8", (0x1_8400_0000, 0x1_8410_0000), bytes(32)))
    after = flatten(tree.root)
    assert len(after) == len(before)
    assert Blob(tree).cells("/chosen", "linux,initrd-start") == [1, 0x8400_0000]


def test_memory_has_a_node_for_each_bank():
    wired, _ = CHIPS["plic"](1)
    blob = Blob(build(Cpu(), 1, [(0x8000_0000, 128 * MIB), (0x1_0000_0000, 1 << 32)], wired))
    assert blob.cells("/memory@80000000", "reg") == [0, 0x8000_0000, 0, 128 * MIB]
    assert blob.cells("/memory@100000000", "reg") == [1, 0, 1, 0]


def test_cpus_has_a_node_for_each_hart():
    blob = Blob(machine(harts=128))
    assert blob.cells("/cpus", "timebase-frequency") == [10_000_000]
    assert blob.cells("/cpus/cpu@7f", "reg") == [127]
    assert blob.strings("/cpus/cpu@7f", "mmu-type") == ["riscv,sv57"]
    assert blob.cells("/cpus/cpu@7f", "riscv,cbom-block-size") == [64]


def test_cpu_lists_extensions_in_both_forms():
    blob = Blob(machine("aia"))
    names = blob.strings("/cpus/cpu@1", "riscv,isa-extensions")
    assert names == isa.canonical(EXTENSIONS)
    assert blob.strings("/cpus/cpu@1", "riscv,isa") == [isa.isa_string(names)]
    assert blob.strings("/cpus/cpu@1", "riscv,isa-base") == ["rv64i"]


@pytest.mark.parametrize(("chip", "listed"), [("plic", False), ("aplic", False), ("aia", True)])
def test_cpu_lists_ssaia_only_with_an_imsic(chip, listed):
    blob = Blob(machine(chip))
    assert ("ssaia" in blob.strings("/cpus/cpu@0", "riscv,isa-extensions")) is listed
    assert ("ssaia" in blob.strings("/cpus/cpu@0", "riscv,isa")[0]) is listed


def test_cpu_block_size_is_left_out_without_its_extension():
    wired, _ = CHIPS["plic"](1)
    blob = Blob(build(Cpu(("i", "m", "a", "zicboz"), cbom=64, cboz=64), 1, RAM, wired))
    assert not blob.has("/cpus/cpu@0", "riscv,cbom-block-size")
    assert blob.cells("/cpus/cpu@0", "riscv,cboz-block-size") == [64]


def every_hart(blob, harts):
    return [
        cell
        for hart in range(harts)
        for cell in (blob.phandle(f"/cpus/cpu@{hart:x}/interrupt-controller"), 9)
    ]


def test_plic_has_one_s_mode_context_a_hart_and_one_cell_specifiers():
    blob = Blob(machine("plic", 3))
    path = "/soc/interrupt-controller@8000000"
    assert blob.cells(path, "interrupts-extended") == every_hart(blob, 3)
    assert blob.cells(path, "riscv,ndev") == [31]
    assert blob.cells("/soc", "interrupt-parent") == [blob.phandle(path)]
    assert blob.cells("/soc/serial@10000000", "interrupts") == [1]


def test_aplic_in_direct_mode_names_the_harts():
    blob = Blob(machine("aplic", 3))
    path = "/soc/interrupt-controller@c000000"
    assert blob.cells(path, "interrupts-extended") == every_hart(blob, 3)
    assert blob.cells(path, "reg") == [0, layout.APLIC_BASE, 0, 0x4000 + 3 * 32]
    assert not blob.has(path, "msi-parent")


def test_aplic_in_msi_mode_names_the_imsic_which_names_the_harts():
    blob = Blob(machine("aia", 3))
    imsic, aplic = "/soc/interrupt-controller@8000000", "/soc/interrupt-controller@c000000"
    assert blob.cells(aplic, "msi-parent") == [blob.phandle(imsic)]
    assert not blob.has(aplic, "interrupts-extended")
    assert blob.cells(imsic, "interrupts-extended") == every_hart(blob, 3)
    assert blob.cells(imsic, "reg") == [0, layout.IMSIC_BASE, 0, 3 * 0x1000]
    assert blob.cells(imsic, "riscv,num-ids") == [255]
    assert blob.cells(imsic, "riscv,hart-index-bits") == [2]


def test_imsic_with_guest_files_spreads_the_harts():
    blob = Blob(build(Cpu(), 2, RAM, Aplic(layout.APLIC_BASE, 0x4000, 31), Imsic(layout.IMSIC_BASE, 63, 2)))
    path = "/soc/interrupt-controller@8000000"
    assert blob.cells(path, "reg") == [0, layout.IMSIC_BASE, 0, 2 * 0x4000]
    assert blob.cells(path, "riscv,guest-index-bits") == [2]


def test_aplic_specifier_says_level_unless_the_device_pulses():
    pulsing = Device("pulse", 0x1002_0000, 0x1000, 7, describe_rtc, trigger=EDGE_RISING)
    blob = Blob(machine("aia", devices=(UART, pulsing)))
    assert blob.cells("/soc/serial@10000000", "interrupts") == [1, 4]
    assert blob.cells("/soc/pulse@10020000", "interrupts") == [7, 1]


def test_only_the_devices_asked_for_are_there():
    text = to_dts(machine(devices=(RTC,), chosen=None).root)
    assert re.findall(r"(\w+)@1[0-9a-f]{7} \{", text) == ["rtc"]
    assert "aliases" not in text


def test_device_without_wire_has_no_interrupts():
    blob = Blob(machine(devices=(Device("syscon", 0x1002_0000, 0x1000),), chosen=None))
    assert not blob.has("/soc/syscon@10020000", "interrupts")


def test_two_devices_at_one_place_are_refused():
    with pytest.raises(ValueError, match="/soc already has a node 'rtc@10010000'"):
        machine(devices=(RTC, RTC))
