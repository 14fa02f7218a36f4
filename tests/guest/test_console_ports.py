# SPDX-License-Identifier: Apache-2.0
"""The virtio console with Linux's own driver: the machine's console, and named ports."""

import hashlib
import os
import socket

import pytest
from booted import PATIENCE

MIB = 1 << 20


def off(guest):
    guest.sendline("poweroff -f")
    assert guest.end() == (0, "the guest powered off")


# The machine's console


@pytest.mark.parametrize("kernel", ["6.12", "7"])
def test_console_is_hvc0_and_knows_its_size(boot, kernel):
    guest = boot(kernel=kernel, options=["--console=virtio"])
    assert "hvc0" in guest.run("cat /sys/class/tty/console/active")
    assert guest.run("stty size </dev/hvc0").split() == ["24", "200"]
    guest.resize(50, 132)
    guest.run("until [ \"$(stty size </dev/hvc0)\" = '50 132' ]; do usleep 1000; done")
    off(guest)


# Named ports


class PortGuest:
    """A guest with ports, and their host ends."""

    def __init__(self, guest, directory):
        self.guest = guest
        self._directory = directory

    def device(self, name="agent"):
        """The port's device in the guest, which hears of its ports after it has loaded the driver."""
        look = f"grep -lx {name} /sys/class/virtio-ports/*/name 2>/dev/null"
        found = self.guest.run(f"until {look}; do usleep 1000; done").strip()
        return f"/dev/{found.split('/')[4]}"

    def connect(self, name="agent"):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(PATIENCE)
        client.connect(f"{self._directory}/{name}")
        return client


@pytest.fixture
def port_guest(boot, tmp_path):
    """Boots a guest with ports of these names, each a socket."""

    def make(*names, options=(), **machine):
        ports = [f"--port={name},unix={tmp_path}/{name}" for name in names]
        guest = boot(options=[*ports, *options], **machine)
        guest.run("modprobe virtio_mmio 2>/dev/null; true")
        return PortGuest(guest, tmp_path)

    return make


def read_all(client):
    data = b""
    while piece := client.recv(MIB):
        data += piece
    return data


# Debian's kernels have virtio-mmio as a module, so their console is another one there.
@pytest.mark.parametrize(
    ("transport", "chip", "console"),
    [
        ("pci", "auto", "virtio"),
        pytest.param("pci", "plic", "virtio", marks=pytest.mark.long),
        ("mmio", "auto", "serial"),
        pytest.param("mmio", "plic", "serial", marks=pytest.mark.long),
    ],
)
def test_port_carries_a_megabyte_each_way_and_ends_with_either_side(port_guest, transport, chip, console):
    options = [f"--virtio-transport={transport}", f"--irqchip={chip}", f"--console={console}"]
    ports = port_guest("agent", full=transport == "mmio", options=options)
    guest, device = ports.guest, ports.device()
    data = os.urandom(MIB)
    client = ports.connect()
    guest.sendline(f"cat {device} >/tmp/data; echo READ''IT")
    client.sendall(data)
    client.close()
    guest.expect("READIT")
    assert guest.run("md5sum </tmp/data").split()[0] == hashlib.md5(data).hexdigest()
    client = ports.connect()
    guest.sendline(f"cat /tmp/data >{device}")
    assert read_all(client) == data
    client.close()
    off(guest)


def test_port_serves_one_client_after_another(port_guest):
    ports = port_guest("agent")
    guest, device = ports.guest, ports.device()
    # Reading a port without a client gives the end of the file, closing it ends the conversation of a client.
    answer = "until read -r x <&3; do usleep 10000; done; echo got $x >&3; exec 3>&-"
    guest.run(f"(while exec 3<>{device}; do {answer}; done) >/dev/null 2>&1 & true")
    for number in range(4):
        with ports.connect() as client:
            client.sendall(b"%d\n" % number)
            assert read_all(client) == b"got %d\n" % number
    off(guest)


@pytest.mark.long
def test_writing_waits_for_a_client(port_guest):
    ports = port_guest("agent")
    guest, device = ports.guest, ports.device()
    guest.sendline(f"echo for the client >{device}")
    with ports.connect() as client:
        assert read_all(client) == b"for the client\n"
    off(guest)


@pytest.mark.long
def test_ports_do_not_mix(port_guest):
    ports = port_guest("one", "two")
    guest = ports.guest
    with ports.connect("one") as one, ports.connect("two") as two:
        guest.run(f"echo 1 >{ports.device('one')}")
        guest.run(f"echo 2 >{ports.device('two')}")
        assert (read_all(one), read_all(two)) == (b"1\n", b"2\n")
    off(guest)


@pytest.mark.long
def test_client_stays_connected_while_the_driver_is_unbound(port_guest):
    ports = port_guest("agent")
    guest, device = ports.guest, ports.device()
    with ports.connect() as client:
        where = f"/sys/class/virtio-ports/{os.path.basename(device)}/device"
        guest.run(f"name=$(basename $(readlink -f {where})); cd /sys/bus/virtio/drivers/virtio_console")
        guest.run("echo $name >unbind && echo $name >bind; cd /")
        guest.run(f"echo still here >{ports.device()}")
        assert read_all(client) == b"still here\n"
    off(guest)


def test_port_on_a_file_gets_what_the_guest_writes(boot, tmp_path):
    path = tmp_path / "file"
    ports = PortGuest(boot(options=[f"--port=log,file={path}"]), tmp_path)
    # One write a line, then large ones; the guest ends with the last of them still in the ring.
    ports.guest.run(f"(seq 1 2000; seq 2001 20000 | cat) >{ports.device('log')}")
    off(ports.guest)
    assert path.read_text() == "".join(f"{number}\n" for number in range(1, 20_001))
