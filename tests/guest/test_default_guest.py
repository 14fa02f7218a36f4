# SPDX-License-Identifier: Apache-2.0
"""`pyvmm run` without a kernel, with the devices of the README: Debian's guest has their drivers loaded."""

import pytest
from booted import BootedGuest


@pytest.fixture
def run(real_kvm):
    started = []

    def start(*options):
        started.append(BootedGuest(options))
        started[-1].wait_for_shell()
        return started[-1]

    yield start
    for guest in started:
        guest.close()


def test_devices_are_there_when_no_kernel_was_named(run, tmp_path):
    (tmp_path / "data.img").write_bytes(bytes(8 << 20))
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "file").write_text("of the host\n")
    devices = [
        f"--disk={tmp_path / 'data.img'}",
        "--network=user",
        f"--9p={tmp_path / 'src'},src,rw",
        "--rng",
    ]
    guest = run(*devices, "--params=quiet")
    guest.run("mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt && touch /mnt/made && umount /mnt")
    guest.run("mount -t 9p src /mnt && cp /mnt/file /mnt/copy && sync")
    assert (tmp_path / "src" / "copy").read_text() == "of the host\n"
    guest.run("until ip route | grep -q default; do usleep 100000; done")
    guest.run("head -c 8 /dev/hwrng | wc -c | grep -qx 8")
    guest.sendline("poweroff -f")
    assert guest.end() == (0, "the guest powered off")
