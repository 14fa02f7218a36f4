# SPDX-License-Identifier: Apache-2.0
"""virtio-fs with Linux's own driver and virtiofsd."""

import os
import signal
from pathlib import Path

import pytest
from sharing import big_file, details, exercise, off

# What differs between transports does not take thousands.
FILES = [pytest.param("pci", 2000, marks=pytest.mark.long), ("mmio", 200)]


@pytest.fixture
def folder(real_kvm, tmp_path):
    path = tmp_path / "share"
    path.mkdir()
    return path


@pytest.fixture
def fs_guest(boot):
    """Boots a guest that has mounted a folder at /mnt."""

    def make(share, transport="pci", **machine):
        guest = boot(full=True, options=["--share", share, f"--virtio-transport={transport}"], **machine)
        guest.run("modprobe -a virtio_mmio virtiofs 2>/dev/null; mount -t virtiofs share /mnt")
        return guest

    return make


def virtiofsd_of(guest):
    """Its process id: the child of pyvmm with that name."""
    children = [
        path.read_text().split() for path in Path(f"/proc/{guest._child.pid}/task").glob("*/children")
    ]
    (process,) = [
        pid for pids in children for pid in pids if "virtiofsd" in Path(f"/proc/{pid}/comm").read_text()
    ]
    return int(process)


@pytest.mark.parametrize(("transport", "files"), FILES)
def test_source_tree_is_unpacked_compared_renamed_linked_and_removed(fs_guest, folder, transport, files):
    guest = fs_guest(f"{folder},rw", transport, cpus=2)
    exercise(guest, folder, files)
    off(guest)


@pytest.mark.long
def test_attributes_special_files_and_big_files_work(fs_guest, folder):
    guest = fs_guest(f"{folder},rw")
    details(guest, folder)
    big_file(guest, folder)
    off(guest)


@pytest.mark.long
def test_read_only_share_cannot_be_changed(fs_guest, folder):
    (folder / "file").write_text("content\n")
    guest = fs_guest(str(folder))
    assert guest.run("cat /mnt/file").strip() == "content"
    assert "Read-only file system" in guest.run("! touch /mnt/n 2>&1")
    off(guest)


@pytest.mark.long
def test_virtiofsd_that_is_killed_leaves_a_guest_that_lives(fs_guest, folder):
    guest = fs_guest(f"{folder},rw")
    os.killpg(virtiofsd_of(guest), signal.SIGKILL)
    guest.run("echo the guest lives")
    guest.sendline("poweroff -n -f")  # the guest's kernel would wait for the folder to be synchronised
    assert guest.end() == (0, "the guest powered off")


@pytest.mark.long
def test_driver_that_lets_go_can_come_back(fs_guest, folder):
    (folder / "file").write_text("content\n")
    guest = fs_guest(str(folder))
    guest.run("umount /mnt && cd /sys/bus/virtio/drivers/virtiofs && device=$(basename virtio*)")
    guest.run("echo $device > unbind && echo $device > bind && mount -t virtiofs share /mnt")
    assert guest.run("cat /mnt/file").strip() == "content"
    off(guest)
