# SPDX-License-Identifier: Apache-2.0
"""virtio-9p with Linux's own driver: a source tree, read-only shares, links to the outside, a root folder."""

import pytest
from sharing import big_file, details, exercise, off

# What differs between transports does not take thousands.
FILES = [pytest.param("pci", 2000, marks=pytest.mark.long), ("mmio", 200)]
OPTIONS = "trans=virtio,version=9p2000.L,msize=512000"


@pytest.fixture
def folder(real_kvm, tmp_path):
    path = tmp_path / "share"
    path.mkdir()
    return path


@pytest.fixture
def p9_guest(boot):
    """Boots a guest that has mounted a folder at /mnt."""

    def make(share, transport="pci", mount="", **machine):
        guest = boot(full=True, options=["--9p", share, f"--virtio-transport={transport}"], **machine)
        guest.run("modprobe virtio_mmio 2>/dev/null; modprobe 9pnet_virtio && modprobe 9p")
        guest.run(f"mount -t 9p -o {OPTIONS}{mount} share /mnt")
        return guest

    return make


@pytest.mark.parametrize(("transport", "files"), FILES)
def test_source_tree_is_unpacked_compared_renamed_linked_and_removed(p9_guest, folder, transport, files):
    guest = p9_guest(f"{folder},rw", transport, cpus=2, mount=",cache=loose")
    exercise(guest, folder, files)
    off(guest)


@pytest.mark.long
def test_attributes_special_files_and_big_files_work_without_a_cache(p9_guest, folder):
    guest = p9_guest(f"{folder},rw")
    details(guest, folder)
    big_file(guest, folder, mib=2)  # busybox copies 4 KiB at a time, each a request of its own
    off(guest)


@pytest.mark.long
def test_read_only_share_cannot_be_changed(p9_guest, folder):
    (folder / "file").write_text("content\n")
    guest = p9_guest(str(folder))
    assert guest.run("cat /mnt/file").strip() == "content"
    for change in (
        "echo x > /mnt/file",
        "rm /mnt/file",
        "mkdir /mnt/d",
        "mv /mnt/file /mnt/f",
        "touch /mnt/n",
    ):
        assert "Read-only file system" in guest.run(f"! {change} 2>&1")
    off(guest)
    assert (folder / "file").read_text() == "content\n"


@pytest.mark.long
def test_links_lead_nowhere_but_into_the_guest(p9_guest, folder):
    (folder.parent / "secret").write_text("secret of the host\n")
    (folder / "up").symlink_to("../secret")
    (folder / "absolute").symlink_to("/etc/hostname-of-the-host")
    guest = p9_guest(f"{folder},rw")
    guest.run(
        "! cat /mnt/up 2>/dev/null && ! cat /mnt/absolute 2>/dev/null && ! ls /mnt/../secret 2>/dev/null"
    )
    guest.run("echo guest > /secret && cat /mnt/up | grep guest")
    off(guest)
    assert (folder.parent / "secret").read_text() == "secret of the host\n"


@pytest.mark.long
def test_folder_is_a_root_file_system(boot, p9_guest, folder):
    guest = p9_guest(f"{folder},rw")
    guest.run("cd /mnt && mkdir dev proc sys tmp sbin mnt && cp -a /bin . && sync", 300)
    off(guest)
    init = folder / "sbin" / "init"
    init.write_text("#!/bin/sh\nexport PATH=/bin HOME=/ PS1='~ # '\nexec setsid cttyhack sh\n")
    init.chmod(0o755)
    params = "quiet root=share rootfstype=9p"
    guest = boot(full=True, params=params, options=["--9p", f"{folder},rw"])
    assert "share / 9p rw" in guest.run("cat /proc/mounts")
    guest.run("cp /bin/busybox /tmp/busybox && cmp /bin/busybox /tmp/busybox && /tmp/busybox true")
    guest.run("echo written by the guest > /tmp/note && chown 1000:1000 /tmp/note && sync")
    off(guest)
    assert (folder / "tmp" / "note").read_text() == "written by the guest\n"
    assert (folder / "tmp" / "note").stat().st_uid == 1000
