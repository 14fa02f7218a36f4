# SPDX-License-Identifier: Apache-2.0
"""Our device trees, as blob and as source, through the device tree compiler."""

import subprocess

import pytest

from pyvmm import isa, layout
from pyvmm.devicetree import Aplic, Chosen, Cpu, Imsic, Plic, build
from pyvmm.fdt import flatten, to_dts
from pyvmm.lab import tools
from pyvmm.peripherals import RTC, UART

CHIPS = {
    "plic": (Plic(layout.PLIC_BASE, layout.PLIC_SIZE, 31), None),
    "aplic": (Aplic(layout.APLIC_BASE, layout.APLIC_SIZE + 128 * 32, 31), None),
    "aia": (Aplic(layout.APLIC_BASE, layout.APLIC_SIZE, 31), Imsic(layout.IMSIC_BASE, 255)),
}


@pytest.fixture(scope="module")
def dtc():
    command = tools.command("dtc")

    def run(data, *options):
        """dtc's output for ``data``; whatever it has to say against it fails the test."""
        done = subprocess.run([*command, *options, "-"], input=data, capture_output=True, check=False)
        assert (done.returncode, done.stderr.decode()) == (0, "")
        return done.stdout

    return run


def machine(chip, harts):
    wired, imsic = CHIPS[chip]
    chosen = Chosen('quiet "quoted\\text"', "serial0:115200n8", (0x8400_0000, 0x8410_0000), bytes(range(64)))
    cpu = Cpu((*isa.DEFAULT, "zicbom", "ssaia"), cbom=64)
    devices = [UART.describe(), RTC.describe()]
    memory = [(layout.RAM_BASE, 512 << 20)]
    return build(cpu, harts, memory, wired, imsic, devices=devices, chosen=chosen).root


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("harts", [1, 4, 128])
def test_dtc_accepts_the_blob_without_warnings(dtc, chip, harts):
    assert dtc(flatten(machine(chip, harts)), "-I", "dtb", "-O", "dts")


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("harts", [1, 4, 128])
def test_dtc_compiles_the_source_to_an_equal_tree_without_warnings(dtc, chip, harts):
    root = machine(chip, harts)
    compiled = dtc(to_dts(root).encode(), "-I", "dts", "-O", "dtb")
    ours, theirs = (dtc(blob, "-I", "dtb", "-O", "dts", "-s") for blob in (flatten(root), compiled))
    assert ours == theirs
