# SPDX-License-Identifier: Apache-2.0
"""edu driven from inside a real guest: every register, DMA, and every way its interrupts can travel."""

import sys

import pytest

CHIPS = ["aia", "aplic", "plic"]
# What a launcher does before it becomes pyvmm: there are no GSI routes, so messages go by KVM_SIGNAL_MSI.
NO_ROUTES = """
import sys
from pyvmm import cli
from pyvmm.errors import HostError
from pyvmm.kvm.routing import GsiRouting
def allocate(self, address, data):
    raise HostError("there is no route")
GsiRouting.allocate = allocate
sys.exit(cli.main(sys.argv[1:]))
"""


def edu_guest(boot, *options, **more):
    guest = boot(full=True, programs=True, options=["--device=edu", *options], **more)
    guest.run("modprobe uio_pci_generic")
    return guest


def check(guest, words):
    """Run the program; every line it prints is a check that held."""
    lines = guest.run(f"edu {words}", timeout=180).split("\r\n")
    *said, last = [line for line in lines if line.startswith("edu: ")]
    assert len(said) > 1
    assert all(line.endswith(" ok") for line in said), said
    assert last == f"edu: {words.split()[0]}: passed"


def power_off(guest):
    guest.sendline("poweroff -f")
    assert guest.end() == (0, "the guest powered off")


def test_every_register_and_dma_work_and_bad_dma_is_refused(boot):
    guest = edu_guest(boot)
    for words in ("registers", "sizes", "refused"):
        check(guest, words)
    power_off(guest)


@pytest.mark.parametrize("chip", CHIPS)
def test_wired_interrupts_arrive_over_every_controller(boot, has_aia, chip):
    if chip == "aia" and not has_aia:
        pytest.skip("this host has no AIA")
    guest = edu_guest(boot, f"--irqchip={chip}")
    check(guest, "intx")
    power_off(guest)


@pytest.mark.parametrize("launcher", [None, NO_ROUTES], ids=["route and irqfd", "KVM_SIGNAL_MSI"])
def test_messages_arrive_with_and_without_a_route(boot, has_aia, launcher):
    if not has_aia:
        pytest.skip("this host has no AIA, so its guests have no messages")
    command = [sys.executable, "-c", launcher, "run", "--host=local"] if launcher else None
    guest = edu_guest(boot, params="quiet iomem=relaxed", command=command)
    check(guest, "msi 0000:00:01.0")
    power_off(guest)


def test_two_edu_devices_share_the_bus(boot):
    guest = edu_guest(boot, "--device=edu,dma_mask=0xfffffff")
    assert guest.run("lspci -d 1234:11e8").count("1234:11e8") == 2
    power_off(guest)
