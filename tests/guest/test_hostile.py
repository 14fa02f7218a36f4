# SPDX-License-Identifier: Apache-2.0
"""A program inside a real guest that does to its devices whatever it can, and a pyvmm that goes on."""

import pytest


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_guest_that_attacks_its_devices_hurts_nobody_else(boot, tmp_path, transport):
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4 << 20))
    (tmp_path / "shared").mkdir()
    devices = [f"--disk={image}", "--rng", "--balloon", f"--9p={tmp_path / 'shared'},shared"]
    if transport == "pci":
        devices.append("--device=edu")
    guest = boot(
        full=True,
        programs=True,
        params="quiet iomem=relaxed",
        options=[*devices, f"--virtio-transport={transport}", "--console=serial"],
    )
    guest.run("hostile 1 2", timeout=400)
    # The console's device was left alone, and pyvmm serves it and the clock as before.
    assert guest.run("cat /sys/class/rtc/rtc0/since_epoch").strip().isdigit()
    assert image.stat().st_size == 4 << 20
    guest.sendline("poweroff -f")
    assert guest.end() == (0, "the guest powered off")
