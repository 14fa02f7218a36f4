# SPDX-License-Identifier: Apache-2.0
"""virtio-net with Linux's own driver: over a tap with vhost-net and without, and over passt."""

import hashlib
import http.server
import os
import socket
import subprocess
import threading

import pytest

MIB = 1 << 20
SIZE = 100 * MIB
HOST, GUEST = "192.168.77.1", "192.168.77.2"
PORT = 7000
SLOW = 600  # seconds; 100 MiB through an emulated machine
DATA_PATHS = ("on", "off")  # of a tap: vhost-net, pyvmm
TRANSPORTS = ("pci", "mmio")


@pytest.fixture(scope="session")
def data(real_kvm):
    """100 MiB that repeats only after 64 KiB and a bit, and its MD5 sum."""
    block = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(251)) * 9
    whole = (block * (SIZE // len(block) + 1))[:SIZE]
    return whole, hashlib.md5(whole).hexdigest()


@pytest.fixture
def network(boot):
    """Boots a guest with these network cards, its driver loaded."""

    def make(*cards, transport="pci", options=(), **machine):
        words = [word for card in cards for word in ("--network", card)]
        words += [f"--virtio-transport={transport}", *options]
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
def web(data):
    """An HTTP server on the host that gives out the data."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(SIZE))
            self.end_headers()
            self.wfile.write(data[0])

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


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


def move_data(guest, host, port, data):
    """100 MiB to the guest and back; both sums must be right."""
    guest.run(f"wget -q -O /tmp/data http://{host}:{port}/", SLOW)
    assert guest.run("md5sum /tmp/data", SLOW).split()[0] == data[1]
    sink = Sink()
    guest.run(f"nc {host} {sink.port} </tmp/data", SLOW)
    assert sink.result() == (SIZE, data[1])


def off(guest):
    guest.sendline("poweroff -f")
    assert guest.end() == (0, "the guest powered off")


@pytest.mark.parametrize("vhost", DATA_PATHS)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_tap_carries_100_mib_each_way(tap_guest, web, data, vhost, transport):
    guest = tap_guest(f"vhost={vhost}", transport=transport)
    assert "4 packets received" in guest.run(f"ping -c 4 -i 0.2 {HOST}")
    move_data(guest, HOST, web, data)
    off(guest)


@pytest.mark.parametrize("vhost", DATA_PATHS)
def test_tap_carries_frames_of_all_sizes(tap_guest, vhost):
    guest = tap_guest(f"vhost={vhost}", "mtu=9000")
    assert guest.run("cat /sys/class/net/eth0/mtu").strip() == "9000"
    for size in (22, 1472, 1473, 4000, 8972):  # of frames: 64 bytes, the common MTU, two fragments, jumbo
        assert "3 packets received" in guest.run(f"ping -c 3 -i 0.2 -s {size} {HOST}")
    off(guest)


@pytest.mark.parametrize("vhost", DATA_PATHS)
def test_several_queues_carry_data(tap_guest, web, data, vhost):
    guest = tap_guest(f"vhost={vhost}", "queues=2", cpus=2)
    assert guest.run("ls -d /sys/class/net/eth0/queues/*-1 | wc -l").strip() == "2"
    move_data(guest, HOST, web, data)
    off(guest)


@pytest.mark.parametrize("vhost", DATA_PATHS)
def test_driver_can_go_and_come_back(tap_guest, vhost):
    guest = tap_guest(f"vhost={vhost}")
    for _ in range(3):
        guest.run("rmmod virtio_net; modprobe virtio_net && ip link set eth0 up")
        guest.run(f"ip addr add {GUEST}/24 dev eth0")
        assert "2 packets received" in guest.run(f"ping -c 2 -i 0.2 {HOST}")
    off(guest)


def test_offloads_reach_the_guest(tap_guest):
    guest = tap_guest("vhost=off")
    features = guest.run("cat /sys/class/net/eth0/device/features").strip()
    for bit in (0, 1, 7, 8, 11, 12, 15):  # checksums, segments each way, mergeable buffers
        assert features[bit] == "1"
    off(guest)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_passt_carries_100_mib_each_way(user_guest, web, data, transport):
    guest = user_guest(transport=transport)
    assert "2 packets received" in guest.run(f"ping -c 2 {guest.gateway}")
    move_data(guest, guest.gateway, web, data)
    off(guest)


def test_published_port_leads_into_the_guest(user_guest):
    guest = user_guest(f"publish={PORT}:22")
    guest.run("(echo hello from inside | nc -l -p 22) &")
    with socket.create_connection(("127.0.0.1", PORT), timeout=60) as connection:
        assert connection.recv(100) == b"hello from inside\n"
    off(guest)


def test_port_in_use_is_told(run_pyvmm, tmp_path):
    kernel = tmp_path / "Image"
    kernel.write_bytes(b"")
    with socket.create_server(("127.0.0.1", PORT)):
        done = run_pyvmm("--kernel", str(kernel), f"--network=user,publish={PORT}:22")
    assert done.returncode == 2
    assert "passt did not start" in done.stderr


def test_two_cards_have_different_addresses(network):
    guest = network("user", "user")
    addresses = guest.run("cat /sys/class/net/eth0/address /sys/class/net/eth1/address").split()
    assert len(set(addresses)) == 2
    off(guest)


def test_given_address_is_the_guests(network):
    guest = network("user,mac=52:54:00:12:34:56")
    assert guest.run("cat /sys/class/net/eth0/address").strip() == "52:54:00:12:34:56"
    off(guest)


def test_cable_that_is_out_is_out(network):
    guest = network("user,link=off")
    assert guest.run("cat /sys/class/net/eth0/carrier").strip() == "0"
    off(guest)
