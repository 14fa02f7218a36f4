# SPDX-License-Identifier: Apache-2.0
"""A driver at work: what Linux's virtio-blk writes is in the image, and costs few exits."""

import pytest

from pyvmm.lab import guests

MIB = 1 << 20


@pytest.fixture
def vmm_config(vmm_config, tmp_path):
    """The guest of the options, with Debian's kernel, its modules, and a disk of this test's own."""
    (tmp_path / "disk.img").write_bytes(bytes(8 * MIB))
    kernel, initrd = guests.kernel(), guests.initrd(full=True)
    return vmm_config.replace(kernel=kernel, initrd=initrd, mem="512M", disks=[tmp_path / "disk.img"])


def test_what_is_written_is_in_the_image(guest, tmp_path):
    data = b"written by the guest".ljust(512, b".") * 2048
    guest.check("modprobe virtio_blk && test -b /dev/vda")
    guest.put(data, "/tmp/data")
    guest.check("dd if=/tmp/data of=/dev/vda bs=64k conv=fsync")
    assert (tmp_path / "disk.img").read_bytes()[:MIB] == data
    assert (
        guest.check("head -c 1048576 /dev/vda | sha256sum").stdout
        == guest.check("sha256sum </tmp/data").stdout
    )


def test_doorbells_cost_no_exits(guest, trace):
    guest.check("modprobe virtio_blk && test -b /dev/vda")
    with trace.section("reading"):
        guest.check("dd if=/dev/vda of=/dev/null bs=4k count=256 iflag=direct")
    assert trace["reading"].count("mmio", device="blk0") < 16


def test_read_only_disk_cannot_be_written(vm_factory, tmp_path):
    vm = vm_factory(disks=[f"{tmp_path / 'disk.img'},ro"])
    vm.start()
    vm.guest.check("modprobe virtio_blk && test -b /dev/vda")
    assert vm.guest.run("echo no >/dev/vda").status != 0
    assert not any((tmp_path / "disk.img").read_bytes())
