# SPDX-License-Identifier: Apache-2.0
"""vhost and vhost-net on a fake driver and a fake kernel: what it is told, when it starts and stops."""

import os
from errno import EACCES, EFAULT

import pytest
from fakes.tap import FakeTap
from fakes.vhost import FEATURES, FakeVhost
from fakes.virtio import RAM, Rig

from pyvmm.devices.net import bits as netbits
from pyvmm.devices.net.vhostnet import NET_SET_BACKEND, VhostNet, open_vhost_net
from pyvmm.devices.vhost import kernel as vhost
from pyvmm.devices.virtio import bits
from pyvmm.devices.virtio.net import Net
from pyvmm.errors import ConfigError
from pyvmm.memory import DEVICE, READ_ONLY, GuestMemory

MAC = bytes.fromhex("525400123456")
RX, TX = 0, 1


class VhostRig(Rig):
    """A card whose frames a fake kernel moves. ``kernels`` has one a pair, ``kernel`` is the first."""

    def __init__(self, *, queues=1, features=FEATURES, memory=None, **options):
        self.tap = FakeTap(queues)
        self.kernels = [FakeVhost(features) for _ in range(queues)]
        self.kernel = self.kernels[0]
        vhosts = [kernel.make(VhostNet) for kernel in self.kernels]
        super().__init__(Net(self.tap.end, MAC, vhosts=vhosts, **options), memory=memory)

    def __exit__(self, *exc):
        super().__exit__(*exc)
        self.tap.close()

    def tap_fd(self, pair=0):
        return self.tap.end.ports[pair].fd

    def backends(self, pair=0):
        return [ring.backend for ring in self.kernels[pair].rings.values()]

    def disable(self, index):
        with self.core.lock:
            self.core.queue_select = index
            after = self.core.disable_queue()
        after()
        self.loop.run()

    def enable(self, index):
        setup = self.drivers[index].setup
        with self.core.lock:
            self.core.queue_select = index
            for name in ("size", "desc", "driver", "device"):
                self.core.set_queue(name, getattr(setup, name))
            self.core.enable_queue()
        self.loop.run()

    def set_pairs(self, count):
        control = len(self.drivers) - 1
        self.drivers[control].add_chain([b"\x04\x00" + count.to_bytes(2, "little")], [1])
        self.kick(control)
        (done,) = self.drivers[control].collect()
        return done.data


@pytest.fixture
def make():
    rigs = []

    def make(*, started=True, **options):
        rigs.append(VhostRig(**options))
        if started:
            rigs[-1].start()
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.__exit__()


class TestStart:
    def test_kernel_works_both_queues_on_the_tap(self, make):
        rig = make()
        assert rig.backends() == [rig.tap_fd(), rig.tap_fd()]

    def test_kernel_hears_of_the_features_it_knows(self, make):
        rig = make()
        assert rig.kernel.features == rig.core.driver_features & FEATURES
        assert bits.has(rig.kernel.features, netbits.MRG_RXBUF)

    def test_what_the_kernel_does_not_know_is_not_offered(self, make):
        rig = make(started=False)
        assert not bits.has(rig.core.offered, bits.F_RING_PACKED)
        assert bits.has(rig.core.offered, bits.F_RING_RESET)
        old = make(started=False, features=1 << bits.F_VERSION_1)
        assert not bits.has(old.core.offered, bits.F_RING_RESET)
        assert not bits.has(old.core.offered, netbits.MRG_RXBUF)

    def test_rings_lie_where_the_driver_put_them(self, make):
        rig = make()
        for index in (RX, TX):
            setup, ring = rig.drivers[index].setup, rig.kernel.rings[index]
            places = (setup.desc, setup.device, setup.driver)
            assert ring.addresses == tuple(rig.memory.host_address(place, 1) for place in places)
            assert (ring.size, ring.base) == (setup.size, 0)

    def test_kernel_gets_the_guests_ram_and_nothing_else(self, make):
        memory = GuestMemory()
        memory.add(RAM, 4 << 20)
        memory.add(0x1000_0000, 4096, kind=READ_ONLY)
        memory.add(0x2000_0000, 4096, kind=DEVICE)
        memory.add(0x1_0000_0000, 1 << 20)
        rig = make(memory=memory)
        banks = [bank for bank in memory.banks if bank.base in (RAM, 0x1_0000_0000)]
        assert rig.kernel.memory == [(bank.base, bank.size, bank.host_address, 0) for bank in banks]

    def test_driver_notifies_the_kernel_and_not_us(self, make):
        rig = make()
        assert rig.kernel.rings[TX].kick == rig.doorbells[TX].fd
        watched = [watch.fd for watch in rig.loop.watches]
        assert rig.doorbells[TX].fd not in watched
        assert rig.doorbells[2].fd in watched

    def test_kernel_is_woken_for_what_came_before_it_listened(self, make):
        rig = make()
        assert os.eventfd_read(rig.doorbells[RX].fd)
        assert os.eventfd_read(rig.doorbells[TX].fd)

    def test_kernel_interrupts_the_driver(self, make):
        rig = make()
        os.eventfd_write(rig.kernel.rings[RX].call, 1)
        rig.loop.run()
        assert rig.interrupts.queues == {RX: 1}

    def test_queue_the_driver_left_out_is_left_out(self, make):
        rig = make(started=False)
        rig.start(queues=[RX, 2])
        assert rig.backends() == [rig.tap_fd(), -1]

    @pytest.mark.parametrize("request_", [vhost.SET_MEM_TABLE, vhost.SET_VRING_ADDR, NET_SET_BACKEND])
    def test_kernel_that_refuses_breaks_the_session_only(self, make, request_):
        rig = make(started=False)
        rig.kernel.refuse[request_] = EFAULT
        rig.start()
        assert "vhost-net refused" in rig.broken
        rig.kernel.refuse.clear()
        rig.reset()
        rig.start()
        assert rig.backends() == [rig.tap_fd(), rig.tap_fd()]


class TestStop:
    def test_reset_ends_the_kernels_work_and_takes_its_descriptors(self, make):
        rig = make()
        rig.reset()
        assert rig.backends() == [-1, -1]
        assert [(ring.kick, ring.call, ring.error) for ring in rig.kernel.rings.values()] == [
            (-1, -1, -1)
        ] * 2
        assert rig.loop.watches == []

    def test_resets_leak_no_descriptors(self, make):
        rig = make()
        rig.reset()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            rig.start()
            rig.reset()
        assert len(os.listdir("/proc/self/fd")) == before

    def test_broken_ring_needs_a_reset(self, make):
        rig = make()
        os.eventfd_write(rig.kernel.rings[TX].error, 1)
        rig.loop.run()
        assert "broken" in rig.broken
        assert rig.core.status & bits.NEEDS_RESET
        rig.reset()
        rig.start()
        assert rig.backends() == [rig.tap_fd(), rig.tap_fd()]

    def test_broken_ring_is_the_kernels_no_more_whatever_the_host_does_then(self, make):
        rig = make()
        os.eventfd_write(rig.kernel.rings[TX].error, 1)
        rig.loop.run()
        rig.device.set_link(False)
        rig.device.set_link(True)
        rig.device.quiesce()
        rig.device.go_on()
        assert rig.backends() == [-1, -1]
        assert rig.loop.watches == []

    def test_cable_plugged_in_after_the_driver_broke_a_rule_keeps_no_thread_busy(self, make):
        rig = make(link=False)
        rig.drivers[2].add_raw([(0x10, 4, 0)])
        rig.kick(2)
        assert rig.broken
        rig.device.set_link(True)
        for ring in rig.kernel.rings.values():
            if ring.call >= 0:
                os.eventfd_write(ring.call, 1)
        rig.loop.run()
        assert rig.backends() == [-1, -1]

    def test_pair_after_a_refused_one_is_not_begun(self, make):
        rig = make(queues=3)
        rig.kernels[1].refuse[NET_SET_BACKEND] = EFAULT
        rig.set_pairs(3)
        assert "vhost-net refused" in rig.broken
        assert rig.backends(2) == [-1, -1]
        assert rig.loop.watches == []

    def test_queue_reset_stops_that_queue_alone_and_it_comes_back_from_the_start(self, make):
        rig = make()
        rig.kernel.rings[RX].base = 77
        rig.disable(RX)
        assert rig.backends() == [-1, rig.tap_fd()]
        rig.enable(RX)
        assert rig.backends() == [rig.tap_fd(), rig.tap_fd()]
        assert rig.kernel.rings[RX].base == 0
        os.eventfd_write(rig.kernel.rings[RX].call, 1)
        rig.loop.run()
        assert rig.interrupts.queues == {RX: 1}

    def test_close_gives_the_device_back(self, make):
        rig = make()
        rig.core.close()
        assert all(one.fd == -1 for one in rig.device.vhosts)


class TestLinkAndPairs:
    def test_cable_pulled_out_stops_the_kernel_and_it_goes_on_from_there(self, make):
        rig = make()
        rig.kernel.rings[RX].base = 41
        rig.device.set_link(False)
        assert rig.backends() == [-1, -1]
        rig.kernel.rings[RX].base = 0
        rig.device.set_link(True)
        assert rig.backends() == [rig.tap_fd(), rig.tap_fd()]
        assert rig.kernel.rings[RX].base == 41

    def test_card_without_a_cable_begins_when_it_is_plugged_in(self, make):
        rig = make(link=False)
        assert rig.backends() == [-1, -1]
        rig.device.set_link(True)
        assert rig.backends() == [rig.tap_fd(), rig.tap_fd()]

    def test_every_pair_has_a_vhost_and_begins_when_the_driver_wants_it(self, make):
        rig = make(queues=2)
        assert rig.backends(1) == [-1, -1]
        assert rig.set_pairs(2) == b"\x00"
        assert rig.backends(1) == [rig.tap_fd(1), rig.tap_fd(1)]
        rig.kernels[1].rings[TX].base = 9
        assert rig.set_pairs(1) == b"\x00"
        assert rig.backends(1) == [-1, -1]
        rig.set_pairs(2)
        assert rig.kernels[1].rings[TX].base == 9

    def test_control_queue_of_a_driver_that_knows_one_pair_stays_ours(self, make):
        rig = make(started=False, queues=2)
        rig.start(rig.device.offered() & ~bits.feature_set(netbits.MQ), queues=[RX, TX, 2])
        rig.drivers[2].add_chain([b"\x01\x01", MAC], [1])
        rig.kick(2)
        assert [done.data for done in rig.drivers[2].collect()] == [b"\x00"]
        assert rig.backends() == [rig.tap_fd(), rig.tap_fd()]

    def test_no_kick_of_a_pair_comes_to_us(self, make):
        rig = make(queues=2)
        watched = [watch.fd for watch in rig.loop.watches]
        assert not {rig.doorbells[index].fd for index in range(4)} & set(watched)


class TestOpen:
    def test_missing_module_is_named(self, tmp_path):
        with pytest.raises(ConfigError, match=r"--network tap needs .*modprobe vhost_net"):
            open_vhost_net("--network tap", 1, str(tmp_path / "vhost-net"))

    def test_missing_right_is_told(self, monkeypatch):
        monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(OSError(EACCES, "no")))
        with pytest.raises(ConfigError, match="not allowed to open /dev/vhost-net"):
            open_vhost_net("--network tap", 1)

    def test_node_that_is_no_vhost_device_is_told_and_closed(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"")
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ConfigError, match=r"cannot use .*file: Inappropriate ioctl"):
            open_vhost_net("--network tap", 2, str(path))
        assert len(os.listdir("/proc/self/fd")) == before


class TestPause:
    def test_kernel_leaves_the_rings_alone_and_goes_on_where_it_was(self, make):
        rig = make()
        for index in (RX, TX):
            os.eventfd_read(rig.doorbells[index].fd)
        rig.kernel.rings[TX].base = 9
        rig.device.quiesce()
        assert rig.backends() == [-1, -1]
        rig.device.go_on()
        assert rig.backends() == [rig.tap_fd()] * 2
        assert rig.kernel.rings[TX].base == 9
        assert os.eventfd_read(rig.doorbells[TX].fd)  # it looks for what the driver notified meanwhile

    def test_link_that_changes_meanwhile_starts_nothing(self, make):
        rig = make()
        rig.device.quiesce()
        rig.device.set_link(False)
        rig.device.set_link(True)
        assert rig.backends() == [-1, -1]
        rig.device.go_on()
        assert rig.backends() == [rig.tap_fd()] * 2

    def test_card_whose_link_is_down_stays_down(self, make):
        rig = make(link=False)
        rig.device.quiesce()
        rig.device.go_on()
        assert rig.backends() == [-1, -1]

    def test_card_without_a_driver_has_nothing_to_stop(self, make):
        rig = make(started=False)
        rig.device.quiesce()
        rig.device.go_on()
        assert rig.backends() == [-1, -1]

    def test_reset_of_a_paused_card_leaves_the_kernel_out(self, make):
        rig = make()
        rig.device.quiesce()
        rig.reset()
        rig.start()
        assert rig.backends() == [rig.tap_fd()] * 2
