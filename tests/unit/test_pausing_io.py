# SPDX-License-Identifier: Apache-2.0
"""A disk in a pause: with host I/O that is held back, and with a driver that never stops asking."""

import os
import random
import struct
import threading

import pytest
from fakes.threads import PATIENCE, Background, happens, in_time
from fakes.virtio import Rig

from pyvmm.devices.disk.image import DiskImage
from pyvmm.devices.virtio import blk
from pyvmm.devices.virtio.blk import Blk
from pyvmm.devices.virtio.device import Services
from pyvmm.eventloop import EventLoop
from pyvmm.gate import Gate
from pyvmm.pausing import Pausing
from pyvmm.workers import WorkerThreads

SECTORS = 256
CONTENT = random.Random(1).randbytes(512 * SECTORS)


class HeldImage(DiskImage):
    """Nothing of it is cached, and a read waits for ``go``; ``begun`` counts those that wait or have."""

    def __init__(self, fd):
        super().__init__(fd, 512 * SECTORS)
        self.in_memory = False
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)

    def read_cached(self, views, offset, length):
        return False

    def read(self, views, offset):
        self.begun.release()
        happens(self.go)
        super().read(views, offset)


class PausableLoop(Gate):
    """A gate before a real loop, where a Rig expects a loop that it runs itself."""

    def run(self):
        pass


class FakeBoard:
    """A board with this device and no vCPU."""

    def __init__(self, device):
        self.threads = []
        self.devices = [device]
        self.time = 0

    def listen(self, wanted):
        pass


class Disk:
    """A disk under a fake driver, on real threads. ``answered`` counts interrupts."""

    def __init__(self):
        self.errors = []
        self.loop, self.workers = EventLoop(self.errors.append), WorkerThreads(self.errors.append)
        self.gate = PausableLoop(self.loop)
        self.loop.start()
        fd = os.memfd_create("disk")
        os.write(fd, CONTENT)
        self.image = HeldImage(fd)
        self.rig = Rig(Blk(self.image), size=64, services=Services(self.gate, self.workers))
        self.answered = threading.Semaphore(0)
        self.rig.interrupts.queue_interrupt = lambda index: self.answered.release()
        self.rig.start()
        self.asked = {}
        self.pausing = Pausing(self.gate, self.workers)
        self.board = FakeBoard(self.rig.device)

    def ask(self, sector):
        token = self.rig.drivers[0].add_chain([struct.pack("<IIQ", blk.T_IN, 0, sector)], [512, 1])
        self.asked[token] = CONTENT[512 * sector : 512 * (sector + 1)] + b"\0"
        os.eventfd_write(self.rig.doorbells[0].fd, 1)

    def collect(self):
        with self.rig.core.lock:
            done = self.rig.drivers[0].collect()
        for answer in done:
            assert self.asked.pop(answer.token) == answer.data
        return len(done)

    def collect_all(self):
        while self.asked:
            if not self.collect():
                assert self.answered.acquire(timeout=PATIENCE)

    def pause(self):
        self.pausing.pause(self.board, lambda: False)

    def resume(self):
        self.pausing.resume()

    def close(self):
        self.image.go.set()
        self.pausing.let_go()
        in_time(self.rig.reset)
        in_time(self.workers.stop)
        in_time(self.loop.stop)
        self.rig.workers.held, self.rig.workers.release = False, lambda: None
        self.rig.__exit__()
        assert self.errors == []


@pytest.fixture
def disk():
    disk = Disk()
    yield disk
    disk.close()


def test_request_that_the_host_works_at_is_waited_for_and_answered_after_the_pause(disk):
    disk.ask(7)
    assert disk.image.begun.acquire(timeout=PATIENCE)
    pause = Background(disk.pause)
    disk.image.go.set()
    pause.result()
    before = disk.collect()
    disk.ask(8)
    assert disk.collect() == 0  # nobody looks
    disk.resume()
    disk.collect_all()
    assert before in (0, 1)


def test_driver_that_never_stops_asking_loses_nothing_in_many_pauses(disk):
    disk.image.go.set()
    chooser = random.Random(2)
    for _ in range(30):
        while len(disk.asked) < chooser.randrange(1, 8):
            disk.ask(chooser.randrange(SECTORS))
        in_time(disk.pause)
        disk.collect()
        while len(disk.asked) < 16:
            disk.ask(chooser.randrange(SECTORS))
        assert disk.collect() == 0
        disk.resume()
        if chooser.randrange(2):
            disk.collect_all()
        else:
            disk.collect()
    disk.collect_all()


def test_reset_of_the_device_after_a_pause_that_was_let_go_does_not_wait_for_ever(disk):
    disk.image.go.set()
    in_time(disk.pause)
    disk.ask(3)
    disk.pausing.let_go()
    in_time(disk.rig.reset)
    disk.asked.clear()
