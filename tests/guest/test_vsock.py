# SPDX-License-Identifier: Apache-2.0
"""virtio-vsock with Linux's own driver, by the host's vhost-vsock."""

import fcntl
import os
import socket
import struct
import subprocess
import threading
from pathlib import Path

import pytest
from booted import BootedGuest

from pyvmm.devices.virtio import vhost, vsock
from pyvmm.lab import guests
from pyvmm.lab import programs as lab_programs

MIB = 1 << 20
SIZE = "10M"
PORT = 5000
SLOW = 300  # seconds
HOST_CID = 2


@pytest.fixture
def cid():
    """An address that no other guest of this host has, most likely."""
    return 1000 + os.getpid() % 100000


@pytest.fixture(scope="session")
def programs(real_kvm):
    """The folder with netload in it."""
    return lab_programs.programs(Path(__file__).parent / "programs")


@pytest.fixture
def guest(programs, cid):
    initrd = guests.initrd("7", full=True, programs=programs)
    program = ["--kernel", str(guests.kernel("7")), "--initrd", str(initrd), "--params=quiet"]
    guest = BootedGuest([*program, "--mem=512M", "--vsock", str(cid)])
    guest.wait_for_shell()
    guest.run("modprobe vmw_vsock_virtio_transport")
    yield guest
    guest.close()


def off(guest):
    guest.sendline("poweroff -f")
    assert guest.end() == (0, "the guest powered off")


def test_guest_has_its_address(guest, cid):
    assert guest.run("cat /sys/bus/virtio/devices/virtio*/device | grep -c 0x0013").strip() == "1"
    off(guest)


def test_host_reaches_the_guest_and_gets_back_what_it_sent(guest, cid):
    guest.run(f"netload serve vsock: {PORT} 1 >/tmp/log 2>&1 &")
    payload = os.urandom(MIB)
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as connection:
        connection.settimeout(SLOW)
        connect(connection, (cid, PORT))
        connection.sendall(struct.pack("<QQ", 4, MIB))  # netload's echo
        writer = threading.Thread(target=connection.sendall, args=(payload + bytes(8),))
        writer.start()
        assert take(connection, MIB + 8) == payload + bytes(8)
        writer.join()
    off(guest)


@pytest.mark.parametrize("mode", ["send", "receive", "both"])
def test_10_mib_travel_between_guest_and_host(guest, programs, mode):
    server = subprocess.Popen([programs / "netload", "serve", "vsock:", str(PORT)])
    try:
        assert " ok, " in guest.run(f"netload {mode} vsock:{HOST_CID} {PORT} {SIZE}", SLOW)
        assert server.wait(SLOW) == 0
    finally:
        server.kill()
        server.wait()
    off(guest)


def test_driver_can_go_and_come_back(guest, cid):
    guest.run("rmmod vmw_vsock_virtio_transport; modprobe vmw_vsock_virtio_transport")
    guest.run(f"netload serve vsock: {PORT} 1 >/tmp/log 2>&1 &")
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as connection:
        connection.settimeout(SLOW)
        connect(connection, (cid, PORT))
    off(guest)


def test_address_in_use_is_told(run_pyvmm, tmp_path, cid):
    kernel = tmp_path / "Image"
    kernel.write_bytes(b"")
    other = os.open(vsock.NODE, os.O_RDWR)
    fcntl.ioctl(other, vhost.SET_OWNER, 0)
    fcntl.ioctl(other, vsock.VSOCK_SET_GUEST_CID, struct.pack("=Q", cid))
    done = run_pyvmm("--kernel", str(kernel), "--vsock", str(cid))
    os.close(other)
    assert done.returncode == 2
    assert f"CID {cid} is in use" in done.stderr


def connect(connection, address):
    """Connect to a server that may not listen yet."""
    for _ in range(100):
        try:
            return connection.connect(address)
        except ConnectionResetError:
            threading.Event().wait(0.1)
    raise AssertionError(f"nobody listens at {address}")


def take(connection, size):
    data = b""
    while len(data) < size:
        data += connection.recv(size - len(data))
    return data
