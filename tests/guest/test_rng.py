# SPDX-License-Identifier: Apache-2.0
"""virtio-rng with Linux's own driver."""

import pytest


@pytest.fixture
def rng_guest(boot):
    """Boots a guest with this option; its driver is loaded."""

    def make(option, transport="pci"):
        guest = boot(full=True, options=[option, f"--virtio-transport={transport}"])
        guest.run("modprobe virtio_mmio 2>/dev/null; modprobe virtio_rng")
        return guest

    return make


def off(guest):
    guest.sendline("poweroff -f")
    assert guest.end() == (0, "the guest powered off")


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_hwrng_reads_random_bytes(rng_guest, transport):
    guest = rng_guest("--rng", transport)
    assert guest.run("cat /sys/class/misc/hw_random/rng_current").startswith("virtio_rng")
    sums = {guest.run("dd if=/dev/hwrng bs=4k count=16 2>/dev/null | md5sum").split()[0] for _ in range(3)}
    assert len(sums) == 3
    # Random bytes do not compress.
    packed = guest.run("dd if=/dev/hwrng bs=4k count=16 2>/dev/null | gzip | wc -c")
    assert int(packed) > 65_000
    off(guest)


@pytest.mark.long
def test_rate_is_kept(rng_guest):
    guest = rng_guest("--rng=rate=16K")
    # 64 KiB take three whole periods at least: the first one's worth may be there at once.
    before = float(guest.run("cut -d' ' -f1 /proc/uptime"))
    guest.run("dd if=/dev/hwrng bs=64 count=1024 2>/dev/null | wc -c")
    assert float(guest.run("cut -d' ' -f1 /proc/uptime")) - before >= 2.5
    off(guest)
