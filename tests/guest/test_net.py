# SPDX-License-Identifier: Apache-2.0
"""virtio-net with Linux's own driver: over a tap with vhost-net and without, and over passt."""

import hashlib
import http.server
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from pyvmm.lab import guests

CANNOT_RUN = 125  # exit code
MIB = 1 << 20
LARGE, SMALL = 100 * MIB, 10 * MIB
HOST, GUEST = "192.168.77.1", "192.168.77.2"
PORT = 7000
SLOW = 600  # seconds; 100 MiB through an emulated machine
DATA_PATHS = ("on", "off")  # of a tap: vhost-net, pyvmm


def make_data(size):
    """So many bytes, which repeat only after 70 KiB and a bit."""
    block = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(251)) * 9
    return (block * (size // len(block) + 1))[:size]


@pytest.fixture
def network(boot):
    """Boots a guest with these network cards, its driver loaded."""

    def make(*cards, transport="pci", **machine):
        words = [word for card in cards for word in ("--network", card)]
        # Debian's kernel has virtio-mmio as a module: no console comes up on it.
        console = "serial" if transport == "mmio" else "auto"
        words += [f"--virtio-transport={transport}", f"--console={console}"]
        guest = boot(full=True, mem="512M", options=words, **machine)
        guest.run("modprobe virtio_mmio 2>/dev/null; modprobe virtio_net && ip link set eth0 up")
        return guest

    return make


@pytest.fixture
def tap_guest(network):
    """Boots a guest on a tap that pyvmm makes, with addresses at both ends."""

    def make(*settings, **machine):
        name = f"vmt{os.getpid() % 10000}"
        guest = network(",".join(("tap", f"tap={name}", *settings)), **machine)
        subprocess.run(["ip", "addr", "add", f"{HOST}/24", "dev", name], check=True)
        guest.run(f"ip addr add {GUEST}/24 dev eth0")
        guest.tap = name
        return guest

    return make


@pytest.fixture
def user_guest(network):
    """Boots a guest behind passt, configured by DHCP. ``gateway`` is how it sees the host's loopback."""

    def make(*settings, **machine):
        guest = network(",".join(("user", *settings)), **machine)
        guest.run("udhcpc -i eth0 -n -q -t 10", SLOW)
        guest.gateway = guest.run("ip route | awk '/^default/ { print $3 }'").strip()
        return guest

    return make


@pytest.fixture
def web():
    """The port of an HTTP server on the host that gives out as many bytes as its path says."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            data = make_data(int(self.path.strip("/")))
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def host_pings(real_kvm):
    """Lets everybody on the host send pings, as distributions do: passt has no other way."""
    groups = Path("/proc/sys/net/ipv4/ping_group_range")
    before = groups.read_text()
    groups.write_text("0 2147483647")
    yield
    groups.write_text(before)


class Sink(threading.Thread):
    """A TCP server on the host that takes one connection and sums what comes."""

    def __init__(self):
        super().__init__(daemon=True)
        self._listener = socket.create_server(("0.0.0.0", 0))
        self.port = self._listener.getsockname()[1]
        self._sum = hashlib.md5()
        self.count = 0
        self.start()

    def run(self):
        connection, _ = self._listener.accept()
        with self._listener, connection:
            while block := connection.recv(MIB):
                self._sum.update(block)
                self.count += len(block)

    def result(self):
        """(bytes, MD5 sum), after the end of the connection."""
        self.join(SLOW)
        return self.count, self._sum.hexdigest()


def move_data(guest, host, port, size):
    """So many bytes to the guest and back; both sums must be right."""
    expected = hashlib.md5(make_data(size)).hexdigest()
    guest.run(f"wget -q -O /tmp/data http://{host}:{port}/{size}", SLOW)
    assert guest.run("md5sum /tmp/data", SLOW).split()[0] == expected
    sink = Sink()
    guest.run(f"nc {host} {sink.port} </tmp/data", SLOW)
    assert sink.result() == (size, expected)


def greeting():
    """What a server at the published port says first. passt takes connections before the server does."""
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", PORT), timeout=60) as connection:
            if said := connection.recv(100):
                return said
        time.sleep(0.2)
    return b""


def off(guest):
    guest.sendline("poweroff -f")
    assert guest.end() == (0, "the guest powered off")


@pytest.mark.long
@pytest.mark.parametrize("vhost", DATA_PATHS)
def test_tap_carries_100_mib_each_way(tap_guest, web, vhost):
    guest = tap_guest(f"vhost={vhost}")
    assert "4 packets received" in guest.run(f"ping -c 4 -i 0.2 {HOST}")
    move_data(guest, HOST, web, LARGE)
    off(guest)


@pytest.mark.parametrize("vhost", DATA_PATHS)
def test_tap_works_on_mmio(tap_guest, web, vhost):
    guest = tap_guest(f"vhost={vhost}", transport="mmio")
    move_data(guest, HOST, web, SMALL)
    off(guest)


@pytest.mark.parametrize("vhost", DATA_PATHS)
def test_several_queues_and_frames_of_all_sizes_work_also_when_the_driver_comes_back(tap_guest, web, vhost):
    guest = tap_guest(f"vhost={vhost}", "queues=2", "mtu=9000", cpus=2)
    features = guest.run("cat /sys/class/net/eth0/device/features").strip()
    for bit in (0, 1, 7, 8, 11, 12, 15):  # checksums, segments each way, mergeable buffers
        assert features[bit] == "1"
    for _ in range(2):
        assert guest.run("ls -d /sys/class/net/eth0/queues/tx-* | wc -l").strip() == "2"
        assert guest.run("cat /sys/class/net/eth0/mtu").strip() == "9000"
        for size in (
            22,
            1472,
            1473,
            8972,
            20000,
        ):  # 64 bytes a frame, Ethernet's most, more, jumbo, fragments
            assert "2 packets received" in guest.run(f"ping -c 2 -i 0.2 -s {size} {HOST}")
        move_data(guest, HOST, web, SMALL)
        guest.run("rmmod virtio_net; modprobe virtio_net && ip link set eth0 up")
        guest.run(f"ip addr add {GUEST}/24 dev eth0")
    off(guest)


@pytest.mark.long
def test_passt_carries_pings_100_mib_each_way_and_published_ports(user_guest, web, host_pings):
    guest = user_guest(f"publish={PORT}:22")
    assert "2 packets received" in guest.run(f"ping -c 2 {guest.gateway}")
    move_data(guest, guest.gateway, web, LARGE)
    guest.run("(echo hello from inside | nc -l -p 22) & true")
    assert greeting() == b"hello from inside\n"
    off(guest)


@pytest.mark.long
def test_passt_works_on_mmio(user_guest, web):
    guest = user_guest(transport="mmio")
    assert guest.run("cat /sys/class/net/eth0/mtu").strip() == "65520"
    move_data(guest, guest.gateway, web, SMALL)
    off(guest)


@pytest.mark.long
def test_port_in_use_is_told(run_pyvmm):
    with socket.create_server(("127.0.0.1", PORT)):
        done = run_pyvmm("--kernel", str(guests.kernel()), f"--network=user,publish={PORT}:22")
    assert done.returncode == CANNOT_RUN
    assert "passt did not start: Failed to bind" in done.stderr


@pytest.mark.long
def test_cards_have_their_addresses_and_cables(network):
    guest = network("user", "user", "user,mac=52:54:00:12:34:56,link=off")
    made, other, given = guest.run("cat /sys/class/net/eth?/address").split()
    assert made != other
    assert given == "52:54:00:12:34:56"
    guest.run("ip link set eth2 up")
    assert guest.run("cat /sys/class/net/eth0/carrier /sys/class/net/eth2/carrier").split() == ["1", "0"]
    off(guest)
