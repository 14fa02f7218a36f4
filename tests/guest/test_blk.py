# SPDX-License-Identifier: Apache-2.0
"""virtio-blk with Linux's own driver: data, file systems, what the host refuses, locks, block devices."""

import os
import random
import subprocess
from pathlib import Path

import pytest

from pyvmm.devices.disk.opening import open_image
from pyvmm.errors import ConfigError

MIB = 1 << 20


@pytest.fixture
def disk_guest(boot):
    """Boots a guest that has these disks, with its driver loaded."""

    def make(*disks, transport="pci", options=(), **machine):
        words = [word for disk in disks for word in ("--disk", str(disk))]
        guest = boot(full=True, options=[*words, f"--virtio-transport={transport}", *options], **machine)
        guest.run("modprobe virtio_mmio 2>/dev/null; modprobe virtio_blk && test -b /dev/vda")
        return guest

    return make


@pytest.fixture
def image(tmp_path):
    """Makes images: of random data, or empty (sparse)."""

    def make(name, size, seed=None, directory=tmp_path):
        path = directory / name
        with open(path, "wb") as file:
            file.truncate(size)
            if seed is not None:
                chooser = random.Random(seed)
                for _ in range(size // MIB):
                    file.write(chooser.randbytes(MIB))
        return path

    return make


@pytest.fixture
def small_disk(real_kvm, tmp_path):
    """A directory on a file system of 8 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", directory], check=True)
    yield directory
    subprocess.run(["umount", directory], check=True)


@pytest.fixture
def loop_device(real_kvm):
    """Makes block devices out of files."""
    devices = []

    def make(path, *options):
        device = subprocess.run(["losetup", "-f"], capture_output=True, text=True, check=True).stdout.strip()
        subprocess.run(["losetup", *options, device, path], check=True)
        devices.append(device)
        return device

    yield make
    for device in devices:
        subprocess.run(["losetup", "-d", device], check=True)


def off(guest):
    guest.sendline("poweroff -f")
    assert guest.end() == (0, "the guest powered off")


def same(one, other):
    return subprocess.run(["cmp", str(one), str(other)], check=False).returncode == 0


@pytest.mark.long
@pytest.mark.parametrize(("transport", "mib"), [("pci", 256), ("mmio", 64)])
def test_disk_is_copied_by_several_jobs_and_is_equal(disk_guest, image, transport, mib):
    source, target = image("source.img", mib * MIB, seed=1), image("target.img", mib * MIB)
    guest = disk_guest(f"{source},ro", f"{target},queues=2", transport=transport, cpus=2)
    jobs = " ".join(
        f"dd if=/dev/vda of=/dev/vdb bs=1M count={mib // 4} skip={at} seek={at} conv=notrunc,fsync"
        " 2>/dev/null &"
        for at in range(0, mib, mib // 4)
    )
    guest.run(f"{jobs} wait", timeout=600)
    guest.run("cmp /dev/vda /dev/vdb", timeout=600)
    off(guest)
    assert same(source, target)


@pytest.mark.parametrize("direct", ["", pytest.param(",direct", marks=pytest.mark.long)])
def test_file_system_is_made_filled_and_clean(disk_guest, image, direct, tmp_path):
    disk = image("disk.img", 64 * MIB)
    guest = disk_guest(f"{disk}{direct}")
    guest.run("mkfs.ext4 -q /dev/vda && modprobe ext4 && mount -t ext4 /dev/vda /mnt")
    guest.run("cp -r /bin /lib /mnt/ && (cat /dev/zero > /mnt/filler 2>/dev/null || rm /mnt/filler)", 300)
    guest.run("fstrim /mnt && (cd / && find bin lib -type f | xargs md5sum) > /tmp/sums", 300)
    guest.run("umount /mnt && fsck.ext4 -fn /dev/vda && mount -t ext4 /dev/vda /mnt", 300)
    guest.run("cd /mnt && md5sum -cs /tmp/sums && cd / && umount /mnt", 300)
    off(guest)
    subprocess.run(["e2fsck", "-fn", disk], check=True, stdout=subprocess.DEVNULL)


def test_guest_sees_serial_size_queues_and_cache(disk_guest, image):
    guest = disk_guest(f"{image('disk.img', 8 * MIB)},id=root-disk,queues=2", cpus=2)
    assert guest.run("cat /sys/block/vda/serial").strip() == "root-disk"
    assert int(guest.run("blockdev --getsize64 /dev/vda")) == 8 * MIB
    assert len(guest.run("ls /sys/block/vda/mq").split()) == 2
    assert guest.run("cat /sys/block/vda/cache_type").strip() == "write back"
    guest.run("echo 'write through' > /sys/block/vda/cache_type")
    guest.run("dd if=/dev/urandom of=/dev/vda bs=4k count=16 conv=fsync")
    off(guest)


@pytest.mark.long
def test_discarded_space_goes_back_to_the_host(disk_guest, image):
    disk = image("disk.img", 32 * MIB, seed=2)
    assert os.stat(disk).st_blocks * 512 >= 32 * MIB
    guest = disk_guest(disk)
    guest.run("blkdiscard /dev/vda")
    off(guest)
    assert os.stat(disk).st_blocks * 512 <= MIB
    assert os.stat(disk).st_size == 32 * MIB


@pytest.mark.long
def test_read_only_disk_cannot_be_written_and_is_shared(disk_guest, image, tmp_path):
    disk = image("disk.img", 4 * MIB, seed=3)
    before = disk.read_bytes()
    first, second = disk_guest(f"{disk},ro"), disk_guest(f"{disk},ro")
    for guest in (first, second):
        assert guest.run("blockdev --getro /dev/vda").strip() == "1"
        guest.run("! dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync")
        off(guest)
    assert disk.read_bytes() == before


@pytest.mark.long
def test_full_host_disk_is_an_io_error_in_the_guest_and_nothing_else(disk_guest, image, small_disk):
    disk = image("disk.img", 64 * MIB, directory=small_disk)
    guest = disk_guest(disk)
    guest.run("! dd if=/dev/urandom of=/dev/vda bs=1M count=16 conv=fsync", 300)
    assert "I/O error" in guest.run("dmesg | grep vda")
    guest.run("dd if=/dev/vda of=/dev/null bs=64k count=16")
    off(guest)


@pytest.mark.long
def test_broken_host_disk_is_an_io_error_in_the_guest_and_nothing_else(
    disk_guest, image, small_disk, loop_device
):
    # A block device over a file that cannot grow: the writes to it fail with EIO.
    device = loop_device(image("disk.img", 64 * MIB, directory=small_disk))
    guest = disk_guest(f"{device},direct")
    guest.run("! dd if=/dev/urandom of=/dev/vda bs=1M count=16 conv=fsync", 300)
    assert "I/O error" in guest.run("dmesg | grep vda")
    guest.run("dd if=/dev/vda of=/dev/null bs=64k count=16")
    off(guest)


@pytest.mark.long
@pytest.mark.parametrize("direct", ["", ",direct"])
def test_block_device_is_a_disk(disk_guest, image, loop_device, direct):
    disk = image("disk.img", 16 * MIB, seed=4)
    guest = disk_guest(f"{loop_device(disk)}{direct}")
    guest.run("dd if=/dev/vda of=/dev/vda bs=1M count=4 skip=4 seek=8 conv=notrunc,fsync")
    off(guest)
    data = disk.read_bytes()
    assert data[8 * MIB : 12 * MIB] == data[4 * MIB : 8 * MIB]


@pytest.mark.long
def test_second_machine_on_a_disk_is_refused(disk_guest, image, run_pyvmm):
    from pyvmm.lab import guests

    disk = image("disk.img", 4 * MIB)
    guest = disk_guest(disk)
    for words in (f"{disk}", f"{disk},ro"):
        refused = run_pyvmm("--kernel", str(guests.kernel()), "--disk", words)
        assert refused.returncode == 125
        assert "in use by another machine" in refused.stderr
    off(guest)


def refusal(path, **options):
    with pytest.raises(ConfigError) as error:
        open_image(path, "--disk X", **options).close()
    return str(error.value)


@pytest.mark.long
def test_mounted_device_is_refused(image, loop_device, tmp_path):
    disk = image("disk.img", 16 * MIB)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    device = loop_device(disk)
    Path(tmp_path / "mounted").mkdir()
    subprocess.run(["modprobe", "ext4"], check=False)  # where it is not built in
    subprocess.run(["mount", "-t", "ext4", device, tmp_path / "mounted"], check=True)
    said = refusal(device)
    subprocess.run(["umount", tmp_path / "mounted"], check=True)
    assert "in use on this host, mounted" in said


@pytest.mark.long
def test_read_only_device_is_refused_for_writing(image, loop_device):
    device = loop_device(image("disk.img", 4 * MIB), "-r")
    assert "use it with ro" in refusal(device)
    open_image(device, "--disk X", read_only=True).close()
