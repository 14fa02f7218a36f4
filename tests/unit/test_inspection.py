# SPDX-License-Identifier: Apache-2.0
"""What is shown of a machine inside, with devices that no guest has touched yet."""

import pytest
from fakes.guests import idle

from pyvmm import inspection, layout


@pytest.fixture
def inspect(run):
    """The report of a running machine with an entropy device, by its transport."""

    def make(transport):
        it = run([idle], rng=[""], virtio_transport=transport)
        it.start()
        return it.machine.inspect()

    return make


def test_slots_bus_doorbells_and_queues_are_shown(inspect):
    found = inspect("mmio")
    (slot,) = found["slots"]
    assert (slot["base"], slot["size"]) == (layout.RAM_BASE, 16 << 20)
    bus = {entry["name"]: entry["base"] for entry in found["bus"]}
    assert {"uart", "rtc", "rng0"} <= bus.keys()
    assert {"address": bus["rng0"] + 0x50, "size": 4, "value": 0} in found["ioeventfds"]
    rng = found["virtio"]["rng0"]
    assert (rng["device_id"], rng["status"], rng["broken"]) == (4, 0, "")
    (queue,) = rng["queues"]
    assert queue == {"size": queue["size"], "desc": 0, "driver": 0, "device": 0, "enabled": False}
    assert (found["irqchip"], found["routes"], found["pci"]) == ("aia", [], [])


def test_functions_of_the_bus_are_shown_with_their_bars(inspect):
    functions = {entry["name"]: entry for entry in inspect("pci")["pci"]}
    rng = functions["rng0"]
    assert (rng["vendor"], rng["device"]) == (0x1AF4, 0x1044)
    assert rng["bars"]


def test_text_has_one_line_for_each_and_addresses_in_hex(inspect):
    lines = inspection.to_text(inspect("mmio")).splitlines()
    assert "irqchip: aia" in lines
    assert any(f"base=0x{layout.RAM_BASE:x}" in line for line in lines)
    assert any("name=rng0" in line for line in lines)
    assert any("desc=0x0 driver=0x0 device=0x0 " in line for line in lines)
