# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from fakes.run import image

from pyvmm import layout, preview
from pyvmm.config import MachineConfig
from pyvmm.errors import ConfigError
from pyvmm.fdt import flatten

BINDINGS = Path(__file__).parent.parent / "data" / "bindings"
KINDS = ["aia", "aplic", "plic"]


def tree(**config):
    return preview.tree(MachineConfig(**{"kernel": "Image", **config}))


def compatible(tree):
    return tree.wired["compatible"][-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cpus", [*range(1, 10), 64, 127, 128])
def test_tree_of_every_size_flattens_and_wires_every_hart(kind, cpus):
    made = tree(irqchip=kind, cpus=cpus)
    assert flatten(made.root)[:4] == b"\xd0\x0d\xfe\xed"
    wired = made.msi if kind == "aia" else made.wired
    assert len(wired["interrupts-extended"]) == 2 * cpus


@pytest.mark.parametrize(
    ("kind", "name"), [("aia", "riscv,aplic"), ("aplic", "riscv,aplic"), ("plic", "riscv,plic0")]
)
def test_controller_is_the_one_asked_for(kind, name):
    made = tree(irqchip=kind)
    assert compatible(made) == name
    assert (made.msi is not None) == (kind == "aia")


def test_plain_host_gets_what_auto_would_choose():
    assert tree().msi is not None
    assert compatible(tree(isa="host,-ssaia")) == "riscv,plic0"


@pytest.mark.parametrize("kind", KINDS)
def test_devices_of_the_largest_machine_do_not_overlap(kind):
    made = tree(irqchip=kind, cpus=128)
    ranges = sorted(
        (base.value, base.value + size.value)
        for base, size in (node["reg"] for node in made.soc.children if "reg" in node.properties)
    )
    assert all(end <= base for (_, end), (base, _) in pairwise(ranges))
    assert ranges[-1][1] <= layout.RAM_BASE


@pytest.mark.parametrize("kind", KINDS)
def test_dt_validate_finds_nothing_wrong_with_power_button_and_slots(kind, tmp_path):
    blob = tmp_path / "tree.dtb"
    blob.write_bytes(flatten(tree(irqchip=kind, virtio_transport="mmio", rng=[""]).root))
    program = str(Path(sys.executable).parent / "dt-validate")
    command = [program, "-m", "-s", str(BINDINGS), str(blob)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("kind", ["aia", "aplic"])
def test_virtio_mmio_is_described_as_taken_by_its_edges(kind):
    made = tree(irqchip=kind, virtio_transport="mmio", rng=[""])
    nodes = [node for node in made.soc.children if node.properties.get("compatible") == "virtio,mmio"]
    assert [node["interrupts"] for node in nodes] == [[layout.POWER_IRQ, 1], [layout.VIRTIO_IRQ, 1]]


def test_direct_mode_aplic_has_room_for_every_hart():
    _, size = tree(irqchip="aplic", cpus=128).wired["reg"]
    assert size.value >= layout.APLIC_SIZE + 128 * layout.APLIC_IDC_SIZE


@pytest.mark.parametrize(
    ("console", "alias"), [("serial", "serial0:115200n8"), ("sbi", None), ("none", None)]
)
def test_serial_port_is_there_when_it_is_the_console(console, alias):
    made = tree(console=console)
    names = [node.name.partition("@")[0] for node in made.soc.children]
    assert names.count("serial") == (alias is not None)
    assert names.count("rtc") == 1


def test_same_options_give_the_same_bytes():
    assert flatten(tree(cpus=3).root) == flatten(tree(cpus=3).root)


@pytest.fixture
def check(tmp_path):
    def check(**config):
        (tmp_path / "Image").write_bytes(image())
        (tmp_path / "initrd").write_bytes(bytes(24 << 20))
        paths = {
            name: str(tmp_path / value) if name in ("kernel", "initrd") else value
            for name, value in {"kernel": "Image", "mem": "16M", **config}.items()
        }
        before = os.listdir("/proc/self/fd")
        try:
            preview.check(MachineConfig(**paths))
        finally:
            assert os.listdir("/proc/self/fd") == before

    return check


def test_machine_that_can_start_passes(check):
    check()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"kernel": "missing"}, "does not exist"),
        ({"initrd": "missing"}, "initrd .* does not exist"),
        ({"initrd": "initrd"}, r"Kernel, initrd and device tree need .*--mem"),
        ({"params": "x" * (3 << 20)}, "device tree takes .*shorten --params"),
        ({"mem": "1M"}, "Kernel, initrd and device tree need"),
        ({"isa": "host,-ssaia", "irqchip": "aia"}, "needs the extension ssaia"),
        ({"isa": "host,+zbbb"}, "Did you mean zbb"),
        ({"disable_sbi": ["dbnc"]}, "Did you mean dbcn"),
    ],
)
def test_what_fails_on_any_host_is_found_without_one(check, config, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check(**config)
