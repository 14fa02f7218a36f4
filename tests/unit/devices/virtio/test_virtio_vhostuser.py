# SPDX-License-Identifier: Apache-2.0
"""The vhost-user front end against a back end on a thread, which really works the rings."""

import os
import struct

import pytest
from fakes.vhostuser import FEATURES, FakeBackend, wait
from fakes.virtio import RAM, Rig

from pyvmm.devices.vhost import user as vhostuser
from pyvmm.devices.vhost.rings import RemoteRings
from pyvmm.devices.vhost.user import VhostUser
from pyvmm.devices.virtio import bits
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.errors import HostError
from pyvmm.memory import MEMFD, GuestMemory


class Remote(VirtioDevice):
    """A device with nothing of its own."""

    NAME = "remote"
    DEVICE_ID = 99

    def __init__(self, backend):
        super().__init__((16, 16))
        self.connection = VhostUser(backend.socket, "shouter")
        self.rings = RemoteRings(self.connection, backend.end)
        self.withheld = self.connection.withheld

    def activate(self, session):
        self.session = session
        self.rings.start(session)

    def on_queue_stop(self, queue):
        self.rings.stop_ring(self.session, queue.index)

    def stop(self):
        self.rings.stop(self.session)

    def close(self):
        self.connection.close()


@pytest.fixture(autouse=True)
def no_leaks():
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before, "descriptors leaked"


@pytest.fixture
def make_backend():
    made = []

    def make(**options):
        made.append(FakeBackend(**options))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


@pytest.fixture
def make_rig(make_backend):
    """Makes rigs with a device whose back end is ``rig.backend``."""
    made = []

    def make(*, backing=MEMFD, **options):
        memory = GuestMemory()
        memory.add(RAM, 4 << 20, backing=backing)
        backend = make_backend(**options)
        rig = Rig(Remote(backend), memory=memory)
        rig.backend = backend
        made.append(rig)
        return rig

    yield make
    for rig in made:
        rig.__exit__()


def shout(rig, text, index=0):
    """What comes back through a queue."""
    driver = rig.drivers[index]
    token = driver.add_chain([text], [len(text)])
    before = rig.interrupts.queues.get(index, 0)
    os.eventfd_write(rig.doorbells[index].fd, 1)
    wait(rig, lambda: rig.interrupts.queues.get(index, 0) > before)
    [done] = driver.collect()
    assert done.token == token
    return done.data


def test_back_end_works_the_rings_and_interrupts(make_rig):
    rig = make_rig()
    rig.start()
    assert shout(rig, b"hello") == b"HELLO"
    assert shout(rig, b"other queue", 1) == b"OTHER QUEUE"
    assert rig.broken == ""


def test_buffers_offered_before_the_driver_was_ready_are_worked(make_rig):
    rig = make_rig()
    rig.drivers[0].add_chain([b"early"], [5])
    os.eventfd_write(rig.doorbells[0].fd, 1)
    rig.start()
    wait(rig, lambda: rig.interrupts.queues)
    assert rig.drivers[0].collect()[0].data == b"EARLY"


def test_only_what_the_back_end_knows_is_offered(make_rig):
    rig = make_rig()
    assert not bits.has(rig.core.offered, bits.F_RING_PACKED)
    assert not bits.has(rig.core.offered, bits.F_RING_RESET)
    assert bits.has(rig.core.offered, bits.F_INDIRECT_DESC)


def test_packed_rings_are_not_offered_even_when_the_back_end_knows_them(make_rig):
    """Where such a ring begins is told in another form."""
    rig = make_rig(features=FEATURES | 1 << bits.F_RING_PACKED)
    assert not bits.has(rig.core.offered, bits.F_RING_PACKED)
    rig.start()
    assert shout(rig, b"hello") == b"HELLO"


def test_set_up_is_told_in_the_order_of_the_specification(make_rig):
    rig = make_rig()
    rig.start(queues=[0])
    rig.loop.run()
    assert rig.backend.requests() == [1, 15, 16, 3, 2, 5, 8, 10, 9, 13, 12, 18]
    told = dict(rig.backend.told)
    negotiated = struct.unpack("=Q", told[2])[0]
    assert negotiated == 1 << 30 | rig.core.driver_features
    assert not negotiated >> 26 & 1
    bank = rig.memory.banks[0]
    assert told[5] == struct.pack("=IIQQQQ", 1, 0, bank.base, bank.size, bank.host_address, 0)


def test_reset_gets_the_rings_back_and_the_next_session_works(make_rig):
    rig = make_rig()
    for _ in range(3):
        rig.start()
        assert shout(rig, b"again") == b"AGAIN"
        rig.reset()
        assert rig.backend.requests()[-2:] == [11, 11]
        for driver in rig.drivers:
            driver.reset()


def test_queue_reset_takes_that_queue_back_and_leaves_the_other(make_rig):
    rig = make_rig()
    rig.start()
    with rig.core.lock:
        rig.core.queue_select = 0
        after = rig.core.disable_queue()
    after()
    rig.loop.run()
    assert rig.backend.told[-1] == (11, struct.pack("=II", 0, 0))
    assert shout(rig, b"alive", 1) == b"ALIVE"


def test_back_end_leaves_the_rings_alone_for_a_pause_and_loses_nothing(make_rig):
    rig = make_rig()
    rig.start()
    for turn in range(3):
        assert shout(rig, b"before") == b"BEFORE"
        rig.device.rings.quiesce()
        rig.drivers[1].add_chain([b"meanwhile"], [9])
        os.eventfd_write(rig.doorbells[1].fd, 1)
        done = rig.drivers[1].collect()
        assert done == [], turn
        rig.device.rings.go_on()
        wait(rig, lambda done=done: done.extend(rig.drivers[1].collect()) or done)
        assert [one.data for one in done] == [b"MEANWHILE"], turn
    assert rig.broken == ""


def test_reset_while_paused_takes_no_ring_back_twice(make_rig):
    rig = make_rig()
    rig.start()
    rig.device.rings.quiesce()
    told = len(rig.backend.told)
    rig.reset()
    assert len(rig.backend.told) == told
    for driver in rig.drivers:
        driver.reset()
    rig.start()
    assert shout(rig, b"again") == b"AGAIN"


@pytest.mark.parametrize("what", ["hang up", "wrong"])
def test_back_end_that_is_lost_in_a_pause_makes_the_device_need_a_reset(make_rig, what):
    rig = make_rig()
    rig.start()
    rig.backend.misbehave[11] = what
    rig.device.rings.quiesce()
    assert rig.backend.ended
    rig.device.rings.go_on()
    wait(rig, lambda: rig.broken)


def test_back_end_that_ends_makes_the_device_need_a_reset(make_rig):
    rig = make_rig()
    rig.start()
    rig.backend.end()
    wait(rig, lambda: rig.broken)
    assert rig.broken == "shouter has ended."
    assert rig.core.status & bits.NEEDS_RESET
    assert rig.interrupts.config == 1
    rig.reset()
    rig.start()
    assert rig.broken == "shouter has ended."


@pytest.mark.parametrize("request_", [2, 5, 8, 9, 10, 12, 13, 18])
@pytest.mark.parametrize(
    ("what", "said"),
    [("hang up", "has ended"), ("refuse", "refused vhost-user request"), ("wrong", "does not keep to")],
)
def test_back_end_that_fails_during_set_up_is_ended(make_rig, request_, what, said):
    rig = make_rig(misbehave={request_: what})
    rig.start()
    wait(rig, lambda: rig.broken)
    assert said in rig.broken or rig.broken == "shouter has ended."
    assert rig.backend.ended


@pytest.mark.parametrize("what", ["hang up", "wrong", "short"])
def test_back_end_that_keeps_a_ring_is_ended_before_the_reset_is_over(make_rig, what):
    rig = make_rig(misbehave={11: what})
    rig.start()
    rig.reset()
    assert rig.backend.ended


def test_back_end_that_does_not_answer_is_ended(make_rig, monkeypatch):
    monkeypatch.setattr(vhostuser, "PATIENCE", 0.05)
    rig = make_rig(misbehave={5: "silence"})
    rig.start()
    wait(rig, lambda: rig.broken)
    assert rig.broken == "shouter does not answer."
    assert rig.backend.ended


def test_reset_overtaking_the_set_up_still_ends_with_the_rings_taken_back(make_rig):
    rig = make_rig()
    rig.workers.held = True
    rig.start()
    with rig.core.lock:
        after = rig.core.write_status(0)
    rig.workers.held = False
    rig.workers.release()
    after()
    assert rig.backend.requests()[-2:] == [11, 11]


def test_memory_that_is_not_shared_is_refused_with_what_to_do(make_rig):
    rig = make_rig(backing="anonymous")
    rig.start()
    wait(rig, lambda: rig.broken)
    assert "--mem-backend memfd" in rig.broken


def test_back_end_without_acknowledgements_works_too(make_rig):
    rig = make_rig(protocol=1)
    rig.start()
    assert shout(rig, b"hello") == b"HELLO"


@pytest.mark.parametrize("features", [FEATURES & ~(1 << 30), FEATURES & ~(1 << 32), 0])
def test_back_end_that_is_too_old_is_refused(make_backend, features):
    backend = make_backend(features=features)
    with pytest.raises(HostError, match="shouter is too old"):
        VhostUser(backend.socket, "shouter")


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        (1, "hang up"),
        (1, "wrong"),
        (1, "short"),
        (15, "hang up"),
        (15, "wrong"),
        (15, "short"),
        (3, "hang up"),
    ],
)
def test_back_end_that_fails_at_the_start_is_refused(make_backend, request_, what):
    backend = make_backend(misbehave={request_: what})
    with pytest.raises(HostError, match="shouter"):
        VhostUser(backend.socket, "shouter")
