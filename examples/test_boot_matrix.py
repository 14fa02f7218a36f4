# SPDX-License-Identifier: Apache-2.0
"""Does every kernel boot on every interrupt controller, with one hart and with four?"""

import pytest

from pyvmm.lab import guests

AIA = pytest.param("aia", marks=pytest.mark.vmm_requires(irqchip="aia"))


@pytest.mark.parametrize("series", ["7", "6.12"])
@pytest.mark.parametrize("irqchip", [AIA, "plic"])
@pytest.mark.parametrize("cpus", [1, 4])
def test_kernel_boots_with_all_its_harts(vm_factory, series, irqchip, cpus):
    vm = vm_factory(kernel=guests.kernel(series), initrd=guests.initrd(), irqchip=irqchip, cpus=cpus)
    vm.start()
    vm.console.expect(r"Linux version ([^ ]+)")
    assert vm.guest.check("uname -r").stdout.strip() == guests.release(series)
    assert vm.guest.check("nproc").stdout.strip() == str(cpus)
    vm.guest.power_off()
    assert vm.wait().reason == "poweroff"
