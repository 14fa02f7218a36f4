# SPDX-License-Identifier: Apache-2.0
"""virtio-vsock with Linux's own driver, by the host's vhost-vsock."""

import fcntl
import os
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest
from booted import BootedGuest

from pyvmm.devices.vhost import kernel as vhost
from pyvmm.devices.virtio import vsock
from pyvmm.lab import guests
from pyvmm.lab import programs as lab_programs

CANNOT_RUN = 125  # exit code
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


@pytest.fixture
def served(programs):
    """Serves one connection of netload on the host, which must end well."""
    servers = []

    def serve():
        servers.append(subprocess.Popen([programs / "netload", "serve", "vsock:", str(PORT)]))
        return servers[-1]

    yield serve
    for server in servers:
        server.kill()
        server.wait()


def test_data_travels_both_ways_also_when_the_driver_comes_back(guest, cid, served):
    for _ in range(2):
        for mode in ("send", "receive", "both"):
            server = served()
            assert " ok, " in guest.run(f"netload {mode} vsock:{HOST_CID} {PORT} {SIZE}", SLOW)
            assert server.wait(SLOW) == 0
        echo(guest, cid)
        guest.run("rmmod vmw_vsock_virtio_transport; modprobe vmw_vsock_virtio_transport")
    off(guest)


def echo(guest, cid):
    """The host connects to the guest, and gets back what it sent."""
    guest.run(f"netload serve vsock: {PORT} 1 >/tmp/log 2>&1 & true")
    payload = os.urandom(MIB) + bytes(8)
    with connect((cid, PORT)) as connection:
        connection.sendall(struct.pack("<QQ", 4, MIB))  # netload's words for it
        writer = threading.Thread(target=connection.sendall, args=(payload,))
        writer.start()
        assert take(connection, len(payload)) == payload
        writer.join()


def test_address_in_use_is_told(run_pyvmm, cid):
    other = os.open(vsock.NODE, os.O_RDWR)
    fcntl.ioctl(other, vhost.SET_OWNER, 0)
    fcntl.ioctl(other, vsock.VSOCK_SET_GUEST_CID, struct.pack("=Q", cid))
    done = run_pyvmm("--kernel", str(guests.kernel()), "--vsock", str(cid))
    os.close(other)
    assert done.returncode == CANNOT_RUN
    assert f"CID {cid} is in use" in done.stderr


def connect(address):
    """A connection to a server that may not listen yet."""
    for _ in range(100):
        connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        connection.settimeout(SLOW)
        try:
            connection.connect(address)
        except ConnectionResetError:
            connection.close()
            time.sleep(0.1)
        else:
            return connection
    raise AssertionError(f"nobody listens at {address}")


def take(connection, size):
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        assert more, f"the connection ended after {len(data)} of {size} bytes"
        data += more
    return data
