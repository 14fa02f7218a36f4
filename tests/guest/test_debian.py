# SPDX-License-Identifier: Apache-2.0
"""A whole Debian system: from a virtio disk, with systemd, on a network, powered off cleanly."""

import os
import shutil
import subprocess

import pytest

PROMPT = r"root@debian:~# "
SLOW = 400  # seconds for systemd on a busy emulated host


def copied(folder, *, start=0):
    """A copy of the system's disk image, to be written, in ``folder``, behind ``start`` bytes."""
    from pyvmm.lab import rootfs

    copy = folder / "debian.img"
    zeros = bytes(1 << 20)
    with open(rootfs.image(), "rb") as source, copy.open("wb") as target:
        target.seek(start)
        while block := source.read(1 << 20):
            if block != zeros[: len(block)]:
                target.write(block)
            else:
                target.seek(len(block), os.SEEK_CUR)  # a hole: the host's memory is small
        target.truncate()
    return copy


@pytest.fixture
def image(real_kvm, tmp_path):
    """A copy of the system's disk image, to be written."""
    copy = copied(tmp_path)
    yield copy
    copy.unlink()


@pytest.mark.long
def test_debian_boots_from_disk_gets_an_address_runs_programs_and_leaves_a_clean_disk(boot, image):
    guest = boot(
        cpus=2,
        mem="1G",
        full=True,
        params="quiet root=/dev/vda",
        options=[f"--disk={image}", "--network=user", "--rng"],
        shell=False,
    )
    guest.expect("debian login: ", timeout=SLOW)
    guest.sendline("root")
    guest.expect(PROMPT, timeout=SLOW)
    guest.run("bind 'set enable-bracketed-paste off'")
    assert guest.run("cat /etc/debian_version").startswith("13")
    assert guest.run("nproc").strip() == "2"
    # networkctl waits for the lease itself, until there is one.
    guest.run("/usr/lib/systemd/systemd-networkd-wait-online --timeout=120", timeout=SLOW)
    assert "inet 10.0.2.15/24" in guest.run("ip -color=never -4 addr")
    assert guest.run("apt-get --version").startswith("apt 3")
    script = "import hashlib, os; print(hashlib.sha256(os.urandom(1 << 20)).hexdigest()[:0] + str(6 * 7))"
    assert guest.run(f"python3 -c '{script}'", timeout=SLOW).strip() == "42"
    assert "running" in guest.run("systemctl is-system-running --wait || true", timeout=SLOW)
    guest.run("dd if=/dev/urandom of=/root/data bs=1M count=8 && sha256sum /root/data > /root/sum")
    guest.sendline("poweroff")
    assert guest.end(timeout=SLOW) == (0, "the guest powered off")
    fsck = shutil.which("e2fsck") or "/usr/sbin/e2fsck"
    checked = subprocess.run([fsck, "-fn", image], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
