# SPDX-License-Identifier: Apache-2.0
"""Several chains given back at once, in both ring layouts; and what a broken ring leaves of a session."""

import os

import pytest
from fakes.driver import FakeDriver
from fakes.native import BACKENDS
from fakes.virtio import Rig

from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.memory import GuestMemory
from pyvmm.ring import PLAIN, Ring


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def driver(request):
    memory = GuestMemory()
    memory.add(0x8000_0000, 1 << 20)
    yield FakeDriver(memory, packed=request.param, size=4)
    memory.close()


@pytest.fixture(params=BACKENDS)
def queue(driver, request):
    queue = driver.make_queue(Ring(request.param))
    yield queue
    queue.close()


def test_chains_completed_together_come_back_in_order_across_the_wrap(driver, queue):
    for _ in range(5):
        tokens = [driver.add_chain((), [8]) for _ in range(3)]
        chains = [queue.pop() for _ in tokens]
        for number, chain in enumerate(chains):
            chain.writable[0][: number + 1] = b"x" * (number + 1)
        queue.complete_all([(chain, number + 1) for number, chain in enumerate(chains)])
        assert driver.collect() == [(token, n + 1, b"x" * (n + 1)) for n, token in enumerate(tokens)]


@pytest.mark.parametrize("queue", [PLAIN], indirect=True)
def test_driver_sees_no_chain_before_the_last_one_is_written(driver, queue):
    for _ in range(3):
        driver.add_chain((), [8])
    chains = [queue.pop() for _ in range(3)]
    seen = []
    publish = queue._release16

    def watched(address, value):
        seen.append(driver.ring.take_used())
        publish(address, value)

    queue._release16 = watched
    queue.complete_all([(chain, 0) for chain in chains])
    queue._release16 = publish
    assert seen == [None] * len(seen)
    assert len(driver.collect()) == 3


def test_one_interrupt_is_wanted_for_chains_completed_together(driver, queue):
    for _ in range(2):
        driver.add_chain((), [8])
    queue.complete_all([(queue.pop(), 0), (queue.pop(), 0)])
    assert queue.should_interrupt()
    assert not queue.should_interrupt()


class Listener(VirtioDevice):
    """Watches a descriptor, and breaks on its first kick."""

    NAME = "listener"
    DEVICE_ID = 42

    def __init__(self, fd):
        super().__init__((4,))
        self.fd = fd
        self.calls = 0

    def activate(self, session):
        self.session = session
        session.watch(self.fd, self.on_ready)

    def on_ready(self, _events):
        self.calls += 1
        self.session.fail("broken")


def test_broken_session_no_longer_watches_what_nobody_reads():
    fd = os.eventfd(1, os.EFD_NONBLOCK)
    with Rig(Listener(fd)) as rig:
        rig.start()
        rig.kick(0)
        assert rig.broken == "broken"
        assert rig.device.calls == 1
        assert rig.loop.watches == []
    os.close(fd)
