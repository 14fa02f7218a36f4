# SPDX-License-Identifier: Apache-2.0
"""Tap interfaces: opening them on a fake kernel, and everything a user can get wrong."""

import os
import struct
from errno import EBUSY, EIO, EPERM

import pytest
from fakes.tap import FakeTap
from fakes.virtio import make_services

from pyvmm.devicelist import requests
from pyvmm.devices.net import ends as netends
from pyvmm.devices.net import tap, vhostnet
from pyvmm.devices.net.tap import Tap, TapPort, open_tap
from pyvmm.devices.settings import parse
from pyvmm.devices.virtio.net import Net
from pyvmm.errors import ConfigError, HostError

WHAT = "--network tap"


class FakeTun:
    """What the tun driver and the interface's ioctls answer. ``refuse``: request -> errno."""

    def __init__(self):
        self.refuse = {}
        self.attached = []  # (name, flags) of each TUNSETIFF
        self.header_sizes = []
        self.up = []
        self.mtus = []

    def ioctl(self, _fd, request, argument):
        if request in self.refuse:
            raise OSError(self.refuse[request], os.strerror(self.refuse[request]))
        if request == tap.TUNSETIFF:
            name, flags = struct.unpack("=16sH22x", argument)
            name = name.rstrip(b"\0").replace(b"%d", b"4")
            self.attached.append((name.decode(), flags))
            return struct.pack("=16sH22x", name, flags)
        if request == tap.TUNSETVNETHDRSZ:
            self.header_sizes.append(struct.unpack("=i", argument)[0])
        elif request == tap.SIOCGIFFLAGS:
            return struct.pack("=16sH22x", argument[:16], 0x1002)
        elif request == tap.SIOCSIFFLAGS:
            name, flags = struct.unpack("=16sH22x", argument)
            self.up.append((name.rstrip(b"\0").decode(), flags))
        elif request == tap.SIOCSIFMTU:
            self.mtus.append(struct.unpack_from("=i", argument, 16)[0])
        return b""


@pytest.fixture
def tun():
    return FakeTun()


@pytest.fixture
def interfaces(tmp_path, monkeypatch):
    """Adds interfaces to what sysfs shows."""
    monkeypatch.setattr(tap, "INTERFACES", str(tmp_path))

    def add(name, flags=None):
        (tmp_path / name).mkdir()
        if flags is not None:
            (tmp_path / name / "tun_flags").write_text(f"{flags:#x}\n")

    return add


@pytest.fixture
def opened(tun, interfaces):
    """Opens a tap on the fake kernel; the node is one that can be opened."""
    taps = []

    def opened(name="tap0", queues=1, mtu=None):
        taps.append(open_tap(WHAT, name, queues, mtu, tun.ioctl, "/dev/null"))
        return taps[-1]

    yield opened
    for one in taps:
        one.close()


class TestOpen:
    def test_frames_carry_the_header_of_virtio_net_and_no_other(self, opened, tun):
        opened()
        assert tun.attached == [("tap0", tap.IFF_TAP | tap.IFF_NO_PI | tap.IFF_VNET_HDR)]
        assert tun.header_sizes == [12]

    def test_tap_without_a_name_gets_one_of_the_kernel(self, opened):
        assert opened(None).name == "tap4"

    def test_every_queue_joins_the_interface_the_first_one_made(self, opened, tun):
        assert len(opened(None, queues=3).ports) == 3
        assert [name for name, _ in tun.attached] == ["tap4"] * 3
        assert all(flags & tap.IFF_MULTI_QUEUE for _, flags in tun.attached)

    def test_new_interface_is_brought_up_with_the_mtu(self, opened, tun):
        opened("vm1", mtu=9000)
        assert tun.up == [("vm1", 0x1003)]
        assert tun.mtus == [9000]

    def test_existing_interface_is_left_as_it_is(self, opened, tun, interfaces):
        interfaces("tap0", tap.IFF_TAP)
        opened(mtu=9000)
        assert tun.up == []
        assert tun.mtus == []

    def test_interface_made_for_several_queues_can_be_used_with_one(self, opened, tun, interfaces):
        interfaces("tap0", tap.IFF_TAP | tap.IFF_MULTI_QUEUE)
        opened()
        assert tun.attached[0][1] & tap.IFF_MULTI_QUEUE

    def test_failure_leaves_no_descriptor_open(self, opened, tun):
        before = len(os.listdir("/proc/self/fd"))
        tun.refuse[tap.SIOCSIFFLAGS] = EPERM
        with pytest.raises(HostError, match="cannot bring tap0 up: Operation not permitted"):
            opened(queues=2)
        assert len(os.listdir("/proc/self/fd")) == before


class TestMistakes:
    @pytest.mark.parametrize("name", ["a b", "a/b", "x" * 16, "tap%d", "ä", "a:1", "a\x1b"])
    def test_impossible_name_is_refused(self, name):
        with pytest.raises(ConfigError, match="tap takes the name of a network interface, of up to 15"):
            parse("--network", f"tap={name}", netends.SETTINGS)

    def test_interface_of_another_kind_is_refused(self, opened, interfaces):
        interfaces("eth0")
        with pytest.raises(
            ConfigError, match=r"^--network tap: eth0 is not a tap interface; name one, or let one be made\.$"
        ):
            opened("eth0")

    def test_tun_interface_is_refused(self, opened, interfaces):
        interfaces("tun0", 0x0001)
        with pytest.raises(ConfigError, match="tun0 is not a tap interface"):
            opened("tun0")

    def test_interface_for_one_queue_is_refused_for_several(self, opened, interfaces):
        interfaces("tap0", tap.IFF_TAP)
        with pytest.raises(ConfigError, match="made for one queue; leave out queues=, or make it with"):
            opened(queues=2)

    def test_interface_of_another_user_is_told(self, opened, tun, interfaces):
        interfaces("tap0", tap.IFF_TAP)
        tun.refuse[tap.TUNSETIFF] = EPERM
        with pytest.raises(ConfigError, match="tap0 belongs to another user"):
            opened()

    def test_interface_that_may_not_be_made_is_told(self, opened, tun):
        tun.refuse[tap.TUNSETIFF] = EPERM
        with pytest.raises(ConfigError, match=r"may not make .* `ip tuntap add vm7 mode tap user"):
            opened("vm7")
        with pytest.raises(ConfigError, match="name it with tap=tap0"):
            opened(None)

    def test_interface_in_use_is_told(self, opened, tun, interfaces):
        interfaces("tap0", tap.IFF_TAP)
        tun.refuse[tap.TUNSETIFF] = EBUSY
        with pytest.raises(
            ConfigError, match=r"tap0 is in use by another program; end that, or name another one\."
        ):
            opened()

    def test_other_refusal_is_told(self, opened, tun):
        tun.refuse[tap.TUNSETIFF] = EIO
        with pytest.raises(ConfigError, match="tap0 cannot be used: Input/output error"):
            opened()

    def test_missing_module_is_named(self, tun, interfaces, tmp_path):
        with pytest.raises(
            ConfigError, match=r"which this host does not have; load it with `modprobe tun`\."
        ):
            open_tap(WHAT, "tap0", 1, None, tun.ioctl, str(tmp_path / "tun"))

    def test_missing_right_to_the_node_is_told(self, tun, interfaces, monkeypatch):
        def refuse(*_):
            raise PermissionError(13, "no")

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(ConfigError, match="is not allowed to open /dev/net/tun"):
            open_tap(WHAT, "tap0", 1, None, tun.ioctl)


class TestPort:
    def test_frame_that_does_not_fit_goes_on_in_the_overflow(self):
        fake = FakeTap()
        fake.far[0].send(bytes(range(100)))
        first = bytearray(40)
        port = fake.end.ports[0]
        assert port.receive([memoryview(first)], 40) == 100
        assert bytes(first) + bytes(port.overflow) == bytes(range(100))
        fake.far[0].send(b"short")
        assert port.receive([memoryview(first)], 40) == 5
        assert not port.overflow
        fake.end.close()
        fake.close()

    def test_nothing_to_read_blocks_nobody(self):
        fake = FakeTap()
        with pytest.raises(BlockingIOError):
            fake.end.ports[0].receive([], 0)
        fake.end.close()
        fake.close()

    def test_host_without_carrier_control_is_no_failure(self):
        fake = FakeTap()
        fake.refuse[tap.TUNSETCARRIER] = EPERM
        fake.end.set_link(False)
        fake.end.close()
        fake.close()


class TestSettings:
    """What `--network` makes of its words."""

    @pytest.fixture
    def tap_of(self, monkeypatch):
        """Opens a card on fake ends; ``vhost`` is what opening vhost-net gives or raises."""
        made = {"vhost": [], "cards": []}

        def open_fake(what, name, queues, mtu):
            made["tap"] = (name, queues, mtu)
            fake = FakeTap(queues)
            made["cards"].append(fake)
            return Tap(name or f"tap{len(made['cards'])}", fake.end.ports, fake.ioctl)

        def open_vhost(what, count, node=None):
            if isinstance(made["vhost"], Exception):
                raise made["vhost"]
            return made["vhost"]

        monkeypatch.setattr(tap, "open_tap", open_fake)
        monkeypatch.setattr(vhostnet, "open_vhost_net", open_vhost)

        def card(body):
            settings = parse(f"--network {body}", body, Net.SETTINGS, Net.POSITIONAL)
            opened.append(Net.open(settings, make_services()))
            return opened[-1]

        opened = []
        made["open"] = card
        yield made
        for one in opened:
            one.close()
        for fake in made["cards"]:
            fake.close()

    def test_named_tap_needs_no_mode(self, tap_of):
        tap_of["open"]("tap=vm1,mtu=1400")
        assert tap_of["tap"] == ("vm1", 1, 1400)

    def test_mode_and_name_may_both_be_said(self, tap_of):
        tap_of["open"]("tap,tap=vm1")
        assert tap_of["tap"] == ("vm1", 1, None)

    def test_queues_become_ports(self, tap_of):
        assert tap_of["open"]("tap,queues=4").largest_pairs == 4

    def test_missing_vhost_is_no_failure_unless_asked_for(self, tap_of):
        tap_of["vhost"] = ConfigError("no vhost")
        assert not tap_of["open"]("tap").vhosts
        with pytest.raises(ConfigError, match="no vhost"):
            tap_of["open"]("tap,vhost=on")

    def test_vhost_can_be_turned_off(self, tap_of):
        tap_of["vhost"] = AssertionError("it was opened")
        assert not tap_of["open"]("tap,vhost=off").vhosts

    def test_given_address_is_the_cards(self, tap_of):
        assert bytes(tap_of["open"]("tap,mac=52:54:00:AB:cd:ef").MAC).hex(":") == "52:54:00:ab:cd:ef"

    @pytest.mark.parametrize("mac", ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"])
    def test_address_of_no_card_is_refused(self, tap_of, mac):
        with pytest.raises(ConfigError, match="mac takes the address of one card"):
            tap_of["open"](f"tap,mac={mac}")

    @pytest.mark.parametrize("mac", ["52:54:00:12:34", "52-54-00-12-34-56", "52:54:00:12:34:5g", "x"])
    def test_text_that_is_no_address_is_refused(self, tap_of, mac):
        with pytest.raises(ConfigError, match="mac takes six bytes"):
            tap_of["open"](f"tap,mac={mac}")

    def test_made_address_is_stable_local_and_differs_by_name(self, tap_of):
        addresses = [
            bytes(tap_of["open"](body).MAC)
            for body in ("tap=a", "tap=a", "tap=b", "tap=a,id=x", "tap=a,id=y")
        ]
        assert addresses[0] == addresses[1]
        assert len(set(addresses)) == 4
        assert all(address[0] & 3 == 2 for address in addresses)

    def test_made_address_differs_by_the_name_the_kernel_chose(self, tap_of):
        first, second = (tap_of["open"]("tap") for _ in range(2))
        assert first.end.name != second.end.name
        assert bytes(first.MAC) != bytes(second.MAC)

    def test_cards_of_one_machine_have_different_addresses(self):
        first, second = (request.settings for request in requests({"nets": ["user", "user"]}, ()))
        assert netends.mac_of(first, "") != netends.mac_of(second, "")
        assert netends.mac_of(first, "") == netends.mac_of(first, "")

    def test_name_that_is_no_text_makes_an_address_too(self):
        (request,) = requests({"nets": ["user,id=\udcff"]}, ())
        assert len(netends.mac_of(request.settings, "")) == 6

    def test_made_address_differs_by_host(self, tap_of, monkeypatch):
        monkeypatch.setattr(netends, "_host_id", lambda: "here")
        here = bytes(tap_of["open"]("tap=a").MAC)
        monkeypatch.setattr(netends, "_host_id", lambda: "there")
        assert bytes(tap_of["open"]("tap=a").MAC) != here

    @pytest.mark.parametrize(
        ("body", "say"),
        [
            ("user,tap=x", "tap= is for mode=tap"),
            ("user,vhost=on", "vhost=on is for mode=tap"),
            ("user,queues=2", "queues= is for mode=tap"),
            ("tap,publish=22", "publish= is for mode=user"),
            ("bridge", "mode takes one of user, tap"),
            ("tap,queues=17", "queues takes a whole number from 1 to 16"),
            ("tap,mtu=67", "mtu takes a whole number from 68 to 65535"),
        ],
    )
    def test_words_that_do_not_go_together_are_told(self, tap_of, body, say):
        with pytest.raises(ConfigError, match=say):
            tap_of["open"](body)

    def test_card_can_begin_unplugged(self, tap_of):
        assert not tap_of["open"]("tap,link=off").up


def test_port_of_a_tap_closes_its_descriptor():
    fd = os.open("/dev/null", os.O_RDWR)
    TapPort(fd).close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
