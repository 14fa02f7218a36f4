# SPDX-License-Identifier: Apache-2.0
"""A guest on a host on which the native module could not be built: slower, and otherwise the same."""

import sys

import pytest

COMMAND = [
    sys.executable,
    "-c",
    """if True:
    import sys
    from pyvmm import cli, native, ring
    native.FILE = "/nonexistent"
    assert ring.Ring().backend == ring.LIBATOMIC
    sys.exit(cli.main(["run", "--host=local", *sys.argv[1:]]))
    """,
]


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_guest_without_the_native_module_prints_and_keeps_what_it_writes(boot, tmp_path, transport):
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(8 << 20))
    options = [f"--disk={disk}", f"--virtio-transport={transport}"]
    guest = boot(full=True, options=options, command=COMMAND)
    guest.run("modprobe virtio_mmio; modprobe virtio_blk")
    guest.run("seq 200000 >/tmp/text && dd if=/tmp/text of=/dev/vda bs=64k conv=fsync")
    assert guest.run("seq 2000").split() == [str(number) for number in range(1, 2001)]
    guest.sendline("poweroff -f")
    assert guest.end() == (0, "the guest powered off")
    text = "".join(f"{number}\n" for number in range(1, 200_001)).encode()
    assert disk.read_bytes().startswith(text)
