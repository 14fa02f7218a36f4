# SPDX-License-Identifier: Apache-2.0
"""What a real lab host offers for devices: nodes, programs, disks that fail."""

from __future__ import annotations

import subprocess

import pytest

pytestmark = pytest.mark.lab

NODES = ("/dev/kvm", "/dev/loop-control", "/dev/net/tun", "/dev/vhost-net", "/dev/vhost-vsock")
ASK_FOR_ADDRESS = """
import socket, struct, subprocess
ours, theirs = socket.socketpair()
passt = subprocess.Popen(["passt", "--foreground", "--quiet", "--fd", str(theirs.fileno())],
                         pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL)
theirs.close()
mac = bytes.fromhex("525400000001")
addresses = mac + bytes([10, 0, 2, 15]) + bytes(6) + bytes([10, 0, 2, 2])
arp = struct.pack("!HHBBH", 1, 0x800, 6, 4, 1) + addresses
frame = b"\\xff" * 6 + mac + b"\\x08\\x06" + arp
ours.sendall(struct.pack("!I", len(frame)) + frame)
ours.settimeout(30)
print(ours.recv(65536)[24:26].hex())
ours.close()
print(passt.wait(30))
"""
BAD_DISK = """
modprobe null_blk nr_devices=0
grep -q configfs /proc/mounts || mount -t configfs none /sys/kernel/config
mkdir /sys/kernel/config/nullb/bad && cd /sys/kernel/config/nullb/bad
echo 16 >size; echo 1 >memory_backed; echo +2048-4095 >badblocks; echo 1 >power
for mebibyte in 0 1 2; do
    dd if=/dev/zero of=/dev/bad bs=64k count=1 seek=$((mebibyte * 16)) oflag=direct 2>/dev/null; echo $?
done
echo 0 >power; cd /; rmdir /sys/kernel/config/nullb/bad
"""
SMALL_DISK = """
cd "$TMPDIR" && truncate -s 32M disk && mkfs.ext4 -q disk && modprobe ext4 && mkdir -p there || exit
mount -o loop disk there && echo text >there/file && umount there && fsck.ext4 -fn disk 2>&1 | tail -n 1
rm disk
"""


def output(lab, *argv):
    with lab.popen(list(argv), stdout=subprocess.PIPE, text=True) as process:
        return process.stdout.read()


def test_lab_host_has_the_nodes_that_devices_need(lab):
    assert output(lab, "ls", *NODES).split() == list(NODES)


def test_lab_host_has_virtiofsd_on_its_path(lab):
    assert output(lab, "virtiofsd", "--version").startswith("virtiofsd ")


def test_passt_answers_a_guest_and_ends_with_it(lab):
    answer, status = output(lab, "python3", "-c", ASK_FOR_ADDRESS).split()
    assert (answer, status) == ("0002", "0")


def test_disk_with_bad_blocks_fails_there_and_nowhere_else(lab):
    assert output(lab, "sh", "-c", BAD_DISK).split() == ["0", "1", "0"]


def test_file_system_in_an_image_can_be_made_mounted_and_checked(lab):
    assert output(lab, "sh", "-c", SMALL_DISK).startswith("disk: 13/")
