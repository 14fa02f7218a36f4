# SPDX-License-Identifier: Apache-2.0
"""Pausing, resetting and looking into real guests: with I/O in flight nothing is lost, and time stands."""

import hashlib
import os
import shutil
import socket
import subprocess
import threading
import time

import pytest
from steered import SteeredGuest
from test_debian import PROMPT, copied

from pyvmm import outcome

MIB = 1 << 20
SLOW = 600  # seconds
DOTS = "for i in $(seq 64); do dd bs=256k count=1 iflag=fullblock 2>/dev/null; echo -n . >&2; done"
HOST, GUEST = "192.168.78.1", "192.168.78.2"


@pytest.fixture
def steer(real_kvm):
    """Makes steered guests that have reached their shell."""
    made = []

    def make(**options):
        made.append(SteeredGuest(**options))
        made[-1].wait_for_shell()
        return made[-1]

    yield make
    for guest in made:
        guest.close()


def pause_until_done(guest):
    """Pause and resume until the guest's command has ended; returns how often it was paused.

    After each pause the command has to print a dot: another pause might mend what this one broke.
    """
    count = 0
    while not guest.went_on():
        guest.machine.pause()
        before = guest.machine.registers()
        assert guest.machine.state == "paused"
        done = guest.finished(0.05)
        assert guest.machine.registers() == before
        guest.forget_dots()
        guest.machine.resume()
        count += 1
        if done:
            break
    return count


def data(size):
    block = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(251)) * 9
    return (block * (size // len(block) + 1))[:size]


@pytest.mark.parametrize("transport", ["pci", pytest.param("mmio", marks=pytest.mark.long)])
def test_disk_is_copied_whole_while_the_guest_is_paused_many_times(steer, tmp_path, transport):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data(16 * MIB))
    target.write_bytes(bytes(16 * MIB))
    guest = steer(
        full=True,
        cpus=2,
        disks=[f"{source},ro,direct", str(target)],
        virtio_transport=transport,
        console="virtio" if transport == "pci" else "serial",
    )
    guest.run("modprobe virtio_mmio 2>/dev/null; modprobe virtio_blk")
    guest.begin(
        "for i in $(seq 0 63); do dd if=/dev/vda of=/dev/vdb bs=256k count=1 skip=$i seek=$i conv=fsync"
        " 2>/dev/null; echo -n .; done; echo 3 >/proc/sys/vm/drop_caches; cmp /dev/vda /dev/vdb"
    )
    assert pause_until_done(guest) > 5
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("vhost", ["on", pytest.param("off", marks=pytest.mark.long)])
def test_network_loses_no_byte_while_the_guest_is_paused_many_times(steer, vhost):
    tap = f"vmp{os.getpid() % 10000}"
    guest = steer(full=True, cpus=2, nets=[f"tap,tap={tap},vhost={vhost}"])
    subprocess.run(["ip", "addr", "add", f"{HOST}/24", "dev", tap], check=True)
    guest.run(f"modprobe virtio_net && ip addr add {GUEST}/24 dev eth0 && ip link set eth0 up")
    guest.run("dd if=/dev/urandom of=/tmp/given bs=1M count=16")
    sent, received = data(16 * MIB), []
    with socket.create_server(("0.0.0.0", 0)) as giver, socket.create_server(("0.0.0.0", 0)) as taker:

        def give():
            connection, _ = giver.accept()
            with connection:
                connection.sendall(sent)

        def take():
            connection, _ = taker.accept()
            with connection:
                while block := connection.recv(MIB):
                    received.append(block)

        threads = [threading.Thread(target=serve, daemon=True) for serve in (give, take)]
        for thread in threads:
            thread.start()
        ports = [listener.getsockname()[1] for listener in (giver, taker)]
        # A connection for each direction: busybox's nc reads nothing while what it writes is not taken.
        guest.run(f"echo '{DOTS}' >/tmp/dots")
        guest.begin(
            f"sh /tmp/dots </tmp/given | nc {HOST} {ports[1]} &"
            f" nc {HOST} {ports[0]} </dev/null | sh /tmp/dots >/tmp/taken; wait"
        )
        assert pause_until_done(guest) > 5
        for thread in threads:
            thread.join(SLOW)
    assert guest.run("md5sum </tmp/taken").split()[0] == hashlib.md5(sent).hexdigest()
    assert guest.run("md5sum </tmp/given").split()[0] == hashlib.md5(b"".join(received)).hexdigest()


@pytest.mark.long
def test_share_is_read_whole_while_the_guest_is_paused_many_times(steer, tmp_path):
    folder = tmp_path / "share"
    folder.mkdir()
    for number in range(8):
        (folder / f"file{number}").write_bytes(data(MIB + number))
    guest = steer(full=True, cpus=2, shares=[str(folder)])
    guest.run("modprobe virtiofs 2>/dev/null; mount -t virtiofs share /mnt")
    guest.begin(
        "for i in 1 2 3; do for file in /mnt/*; do md5sum <$file >>/tmp/sums; echo -n .; done;"
        " echo 3 >/proc/sys/vm/drop_caches; done"
    )
    assert pause_until_done(guest) > 3
    sums = [hashlib.md5(data(MIB + number)).hexdigest() for number in range(8)]
    assert guest.run("cat /tmp/sums").split()[::2] == sums * 3


@pytest.mark.long
def test_guests_time_stands_still_while_it_is_paused(steer):
    guest = steer(cpus=2)

    def uptime():
        return float(guest.run("cat /proc/uptime").split()[0]), int(guest.run("date +%s"))

    before, began = uptime(), time.monotonic()
    guest.machine.pause()
    time.sleep(20)
    guest.machine.resume()
    after, passed = uptime(), time.monotonic() - began
    assert after[0] - before[0] < passed - 19
    assert after[1] - before[1] < passed - 18
    assert "stall" not in guest.run("dmesg")


def test_reset_restarts_a_guest_that_runs_one_that_is_paused_and_one_that_has_panicked(steer):
    guest = steer(cpus=2, on_panic="wait", params="quiet panic=0")
    guest.run("echo here >/tmp/mark")
    guest.machine.reset()
    guest.wait_for_shell()
    guest.run("test ! -e /tmp/mark")
    guest.machine.pause()
    guest.machine.reset()
    guest.wait_for_shell()
    guest.console.sendline("echo c >/proc/sysrq-trigger")
    guest.console.expect_exact("end Kernel panic")
    guest.machine.reset()
    guest.wait_for_shell()
    guest.console.sendline("poweroff -f")
    assert guest.machine.wait().reason == outcome.POWEROFF


@pytest.mark.long
def test_running_guest_shows_registers_memory_counters_and_obeys_sysrq_and_the_balloon(steer):
    guest = steer(cpus=2, full=True, balloon=True)
    assert guest.machine.registers(1)["satp"] != 0
    assert guest.machine.read_memory(0x8020_0000 + 0x38, 4) == b"RSC\x05"
    found = guest.machine.inspect()
    assert found["exits"]["mmio"] > 0
    assert found["accesses"]["pci"] > 0
    guest.machine.sysrq("h")
    guest.console.expect_exact("HELP")
    guest.run("modprobe virtio_balloon")
    guest.machine.set_balloon(64 * MIB)
    deadline = time.monotonic() + 90
    while guest.machine.balloon()["actual"] != 64 * MIB:
        assert time.monotonic() < deadline, guest.machine.balloon()
        time.sleep(0.2)
    assert guest.machine.balloon()["statistics"]["total"] > 100 * MIB


@pytest.mark.long
def test_power_key_reaches_whoever_reads_it(steer):
    guest = steer(full=True)
    guest.run("modprobe -a virtio_mmio virtio_input evdev")
    assert "Power Button" in guest.run("cat /proc/bus/input/devices")
    guest.begin("dd if=/dev/input/event0 bs=24 count=4 2>/dev/null | xxd -p -c 24")
    while not guest.finished(1):
        guest.machine.power_button()
    lines = guest.console.before.split()
    assert [line[32:] for line in lines if line.endswith("00") and len(line) == 48] == [
        "0100740001000000",
        "0000000000000000",
        "0100740000000000",
        "0000000000000000",
    ]


@pytest.mark.long
def test_power_key_has_debian_power_off_cleanly(real_kvm, tmp_path):
    image = copied(tmp_path)
    guest = SteeredGuest(
        full=True, cpus=2, mem="1G", disks=[str(image)], params="quiet root=/dev/vda", timeout=f"{SLOW}s"
    )
    try:
        guest.console.expect_exact("debian login: ", timeout=SLOW)
        guest.console.sendline("root")
        guest.console.expect(PROMPT, timeout=SLOW)
        guest.begin("bind 'set enable-bracketed-paste off'; systemctl is-system-running --wait || true")
        guest.finish(SLOW)  # logind acts on the key, and may come after the prompt
        guest.machine.power_button()
        assert guest.machine.wait().reason == outcome.POWEROFF
        guest.close()
        fsck = shutil.which("e2fsck") or "/usr/sbin/e2fsck"
        checked = subprocess.run([fsck, "-fn", image], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout
    finally:
        guest.close()
        image.unlink()
