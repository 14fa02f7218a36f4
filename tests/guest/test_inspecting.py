# SPDX-License-Identifier: Apache-2.0
"""What can be seen of a running machine: slots, bus, routes, doorbells, queues."""

import os
import select

from booted import PATIENCE

from pyvmm import inspection, outcome
from pyvmm.config import MachineConfig
from pyvmm.lab import guests
from pyvmm.machine import Machine
from pyvmm.outcome import Outcome


def read_until(fd, wanted):
    seen = b""
    while wanted not in seen:
        ready, _, _ = select.select([fd], [], [], PATIENCE)
        assert ready, seen
        data = os.read(fd, 4096)
        assert data, seen
        seen += data
    return seen


def running_report(options):
    """The report of a machine whose guest has reached its shell."""
    config = MachineConfig(
        kernel=str(guests.kernel()), initrd=str(guests.initrd()), params="quiet", timeout="90s", **options
    )
    reader, writer = os.pipe()
    try:
        with Machine(config, output_fd=writer) as machine:
            board = machine.prepare()
            machine.start()
            read_until(reader, b"~ # ")
            found = inspection.report(board)
            machine.end(Outcome(outcome.QUIT, "seen enough"))
    finally:
        os.close(reader)
        os.close(writer)
    return found


def test_pci_machine_shows_where_everything_is(real_kvm, has_aia):
    found = running_report({"rng": [""]})
    assert [slot["base"] for slot in found["slots"]] == [0x8000_0000]
    assert {"rtc", "pci", "console.bar0"} <= {entry["name"] for entry in found["bus"]}
    console = found["virtio"]["console"]
    assert console["status"] == 0xF
    assert all(queue["enabled"] for queue in console["queues"])
    bars = {entry["name"]: entry["bars"] for entry in found["pci"]}
    at = bars["console"][0]["address"]
    assert {"address": at + 0x3000, "size": 2, "value": None} in found["ioeventfds"]
    if has_aia:
        assert found["irqchip"] == "aia"
        assert any(route["irqfd"] and route["address"] == 0x0800_0000 for route in found["routes"])
    else:
        assert found["routes"] == []
    text = inspection.to_text(found)
    assert "irqchip: " in text
    assert "name=console.bar0" in text


def test_mmio_machine_shows_a_doorbell_for_each_queue(real_kvm):
    found = running_report({"virtio_transport": "mmio", "console": "serial", "rng": [""]})
    assert found["pci"] == []
    assert {"address": 0x1002_0050, "size": 4, "value": 0} in found["ioeventfds"]
    assert {"rng0"} == set(found["virtio"])
