# SPDX-License-Identifier: Apache-2.0
"""virtio-vsock on a fake driver and a fake kernel."""

import os
from errno import EADDRINUSE, EINVAL, EPERM

import pytest
from fakes.vhost import FEATURES, FakeVhost
from fakes.virtio import Rig, make_services

from pyvmm.devices.settings import parse
from pyvmm.devices.virtio import bits, vsock
from pyvmm.devices.virtio.vsock import VhostVsock, Vsock
from pyvmm.errors import ConfigError, HostError

RX, TX, EVENT = 0, 1, 2
CID = 0xFFFF_FFFE


@pytest.fixture
def kernel():
    return FakeVhost(FEATURES | 1 << vsock.F_SEQPACKET)


@pytest.fixture
def rig(kernel):
    with Rig(Vsock(kernel.make(VhostVsock), CID)) as rig:
        yield rig


@pytest.fixture
def opened(kernel, monkeypatch):
    """Opens a device as a user asks for it, on the fake kernel."""
    monkeypatch.setattr(VhostVsock, "open", classmethod(lambda cls, *_: kernel.make(cls)))
    devices = []

    def opened(body):
        settings = parse(f"--vsock {body}", body, Vsock.SETTINGS, Vsock.POSITIONAL)
        devices.append(Vsock.open(settings, make_services()))
        return devices[-1]

    yield opened
    for device in devices:
        device.close()


def test_driver_reads_its_address_whole_and_in_halves(rig):
    assert rig.device.read(0, 8) == CID
    assert (rig.device.read(0, 4), rig.device.read(4, 4)) == (CID, 0)
    rig.device.write(0, 8, 5)
    assert rig.device.read(0, 8) == CID


def test_kernel_runs_receive_and_transmit_and_we_the_events(rig, kernel):
    rig.start()
    assert kernel.running
    assert [ring.kick for ring in kernel.rings.values()] == [rig.doorbells[RX].fd, rig.doorbells[TX].fd]
    watched = [watch.fd for watch in rig.loop.watches]
    assert rig.doorbells[EVENT].fd in watched
    assert not {rig.doorbells[RX].fd, rig.doorbells[TX].fd} & set(watched)


def test_buffers_for_events_stay_with_us(rig):
    rig.start()
    rig.drivers[EVENT].add_chain([], [4])
    rig.kick(EVENT)
    assert rig.drivers[EVENT].collect() == []
    assert not rig.broken


def test_seqpacket_is_offered_when_the_kernel_has_it(rig):
    assert rig.device.offered() == 1 << vsock.F_SEQPACKET
    other = Vsock(FakeVhost().make(VhostVsock), CID)
    assert other.offered() == 0
    other.close()


def test_what_the_kernel_cannot_is_withheld(rig):
    assert not rig.core.offered & bits.feature_set(bits.F_RING_PACKED, bits.F_RING_RESET)


def test_reset_stops_the_kernel_and_another_start_runs_it_again(rig, kernel):
    rig.start()
    rig.reset()
    assert not kernel.running
    assert rig.loop.watches == []
    rig.start()
    assert kernel.running


def test_half_a_device_does_not_run(rig, kernel):
    rig.start(queues=[RX, EVENT])
    assert not kernel.running
    assert not rig.broken


def test_queue_taken_away_stops_both_and_both_run_when_it_is_back(rig, kernel):
    rig.start()
    kernel.rings[RX].base = 12
    with rig.core.lock:
        rig.core.queue_select = TX
        after = rig.core.disable_queue()
    after()
    assert not kernel.running
    setup = rig.drivers[TX].setup
    with rig.core.lock:
        for name in ("size", "desc", "driver", "device"):
            rig.core.set_queue(name, getattr(setup, name))
        rig.core.enable_queue()
    rig.loop.run()
    assert kernel.running
    assert (kernel.rings[RX].base, kernel.rings[TX].base) == (12, 0)


def test_paused_device_stops_both_and_goes_on_where_they_were(rig, kernel):
    rig.device.quiesce()  # without a driver there is nothing to stop
    rig.device.go_on()
    rig.start()
    kernel.rings[RX].base = 12
    rig.device.quiesce()
    assert not kernel.running
    rig.device.go_on()
    assert kernel.running
    assert (kernel.rings[RX].base, kernel.rings[TX].base) == (12, 0)
    assert os.eventfd_read(rig.doorbells[TX].fd)


def test_kernel_that_refuses_breaks_the_session_only(rig, kernel):
    kernel.refuse[vsock.VSOCK_SET_RUNNING] = EINVAL
    rig.start()
    assert "vhost-vsock refused" in rig.broken
    kernel.refuse.clear()
    rig.reset()
    rig.start()
    assert kernel.running


def test_broken_ring_needs_a_reset(rig, kernel):
    rig.start()
    os.eventfd_write(kernel.rings[RX].error, 1)
    rig.loop.run()
    assert "broken" in rig.broken
    rig.device.quiesce()
    rig.device.go_on()
    assert not kernel.running
    assert rig.loop.watches == []


class TestOpen:
    def test_address_is_taken_when_the_device_is_opened(self, opened, kernel):
        opened("cid=42")
        assert kernel.cid == 42

    def test_address_may_stand_alone(self, opened, kernel):
        opened("7")
        assert kernel.cid == 7

    @pytest.mark.parametrize("cid", ["0", "2", str(1 << 32), str((1 << 32) - 1), "-3", "x"])
    def test_reserved_or_impossible_address_is_refused(self, opened, cid):
        with pytest.raises(ConfigError, match="cid takes a whole number from 3 to 4294967294"):
            opened(cid)

    def test_missing_address_is_told(self, opened):
        with pytest.raises(ConfigError, match="needs cid="):
            opened("")

    def test_address_in_use_is_told(self, opened, kernel):
        kernel.refuse[vsock.VSOCK_SET_GUEST_CID] = EADDRINUSE
        with pytest.raises(ConfigError, match=r"CID 42 is in use by another guest; choose another one\."):
            opened("42")

    def test_other_refusal_is_told(self, opened, kernel):
        kernel.refuse[vsock.VSOCK_SET_GUEST_CID] = EPERM
        with pytest.raises(HostError, match="the host refuses CID 42: Operation not permitted"):
            opened("42")

    def test_missing_module_is_named(self, tmp_path):
        with pytest.raises(ConfigError, match=r"--vsock 3 needs .*load it with `modprobe vhost_vsock`\."):
            VhostVsock.open("--vsock 3", str(tmp_path / "vhost-vsock"), "vhost_vsock")
