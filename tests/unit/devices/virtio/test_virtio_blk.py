# SPDX-License-Identifier: Apache-2.0
"""virtio-blk on a fake driver: every request, what the host refuses, resets, and hostile requests."""

import errno
import os
import random
import struct
import threading

import pytest
from fakes.threads import PATIENCE, in_time
from fakes.virtio import RAM, Rig, make_services

from pyvmm.devices.disk import jobs
from pyvmm.devices.disk.image import DiskImage
from pyvmm.devices.settings import parse
from pyvmm.devices.virtio import blk
from pyvmm.devices.virtio.blk import Blk
from pyvmm.devices.virtio.device import Services
from pyvmm.errors import ConfigError
from pyvmm.eventloop import EventLoop
from pyvmm.workers import WorkerThreads

SECTORS = 2048
SIZE = 512 * SECTORS
CONTENT = random.Random(1).randbytes(SIZE)


class SlowImage(DiskImage):
    """Nothing of it is ever cached, so that every request goes to a worker. ``calls`` is what was asked."""

    def __init__(self, fd, size=SIZE, **options):
        super().__init__(fd, size, **options)
        self.in_memory = False
        self.calls = []
        self.error = None

    def read_cached(self, views, offset, length):
        return False

    def _note(self, *call):
        self.calls.append(call)
        if self.error:
            raise OSError(self.error, os.strerror(self.error))

    def read(self, views, offset):
        self._note("read", offset)
        super().read(views, offset)

    def write(self, views, offset, durable=False):
        self._note("write", offset, durable)
        super().write(views, offset, durable)

    def flush(self):
        self._note("flush")

    def discard(self, offset, length):
        self._note("discard", offset, length)

    def zero(self, offset, length, unmap):
        self._note("zero", offset, length, unmap)


def memory_file():
    fd = os.memfd_create("disk")
    os.write(fd, CONTENT)
    return fd


class Disk(Rig):
    """A rig for one disk; requests are made with ``ask``."""

    def __init__(self, image, *, packed=False, features=None, **options):
        self.image = image
        self.fd = image._fd
        super().__init__(Blk(image, **options), packed=packed, size=32)
        self.start(features)

    def add(self, kind, sector=0, payload=(), sizes=(), queue=0, header=None):
        header = struct.pack("<IIQ", kind, 0, sector) if header is None else header
        return self.drivers[queue].add_chain([header, *payload], [*sizes, 1])

    def ask(self, kind, sector=0, payload=(), sizes=(), queue=0, header=None):
        """Do one request; returns (status, data)."""
        self.add(kind, sector, payload, sizes, queue, header)
        self.kick(queue)
        (done,) = self.drivers[queue].collect()
        assert done.written == sum(sizes) + 1
        return done.data[-1], done.data[:-1]

    def statuses(self, queue=0):
        return [done.data[-1] for done in self.drivers[queue].collect()]

    def content(self, offset=0, size=SIZE):
        return os.pread(self.fd, size, offset)


@pytest.fixture
def make_disk():
    disks = []

    def make(kind=DiskImage, *, image=None, **options):
        disk = Disk(kind(memory_file(), **{"size": SIZE, **(image or {})}), **options)
        disks.append(disk)
        return disk

    yield make
    for disk in disks:
        disk.__exit__()


@pytest.fixture(params=["split", "packed"])
def any_ring(request, make_disk):
    return lambda kind=DiskImage, **options: make_disk(kind, packed=request.param == "packed", **options)


@pytest.fixture(params=[DiskImage, SlowImage], ids=["cached", "slow"])
def disk(request, any_ring):
    return any_ring(request.param)


@pytest.fixture
def slow(make_disk):
    return make_disk(SlowImage)


def segment(sector, count, flags=0):
    return struct.pack("<QII", sector, count, flags)


class TestRequests:
    def test_read_returns_the_sectors(self, disk):
        assert disk.ask(blk.T_IN, 3, sizes=[4096]) == (blk.OK, CONTENT[1536 : 1536 + 4096])

    def test_read_into_any_cut_returns_the_sectors(self, disk):
        assert disk.ask(blk.T_IN, 1, sizes=[1, 500, 11, 512]) == (blk.OK, CONTENT[512:1536])

    def test_write_changes_those_sectors_only(self, disk):
        data = bytes(range(256)) * 8
        assert disk.ask(blk.T_OUT, 5, [data[:7], data[7:]]) == (blk.OK, b"")
        assert disk.content() == CONTENT[:2560] + data + CONTENT[2560 + 2048 :]

    def test_header_in_pieces_and_joined_to_data_is_understood(self, disk):
        request = struct.pack("<IIQ", blk.T_OUT, 0, 1) + b"x" * 512
        disk.drivers[0].add_chain([request[:3], request[3:200], request[200:]], [1])
        disk.kick()
        assert disk.statuses() == [blk.OK]
        assert disk.content(512, 512) == b"x" * 512

    def test_status_in_the_last_byte_of_a_shared_buffer_is_set(self, disk):
        disk.drivers[0].add_chain([struct.pack("<IIQ", blk.T_IN, 0, 0)], [513])
        disk.kick()
        (done,) = disk.drivers[0].collect()
        assert done.data == CONTENT[:512] + b"\0"

    def test_read_and_write_of_nothing_succeed(self, disk):
        assert disk.ask(blk.T_IN) == (blk.OK, b"")
        assert disk.ask(blk.T_OUT) == (blk.OK, b"")

    def test_last_sector_can_be_used(self, disk):
        assert disk.ask(blk.T_IN, SECTORS - 1, sizes=[512]) == (blk.OK, CONTENT[-512:])

    def test_id_is_padded_with_zeros(self, make_disk):
        disk = make_disk(serial="root-disk")
        assert disk.ask(blk.T_GET_ID, sizes=[20]) == (blk.OK, b"root-disk".ljust(20, b"\0"))

    def test_id_without_one_is_empty(self, make_disk):
        assert make_disk().ask(blk.T_GET_ID, sizes=[20]) == (blk.OK, bytes(20))

    def test_flush_reaches_the_host_before_it_completes(self, slow):
        slow.workers.held = True
        slow.add(blk.T_FLUSH)
        slow.kick()
        assert slow.statuses() == []
        slow.workers.release()
        assert slow.image.calls == [("flush",)]
        slow.loop.run()
        assert slow.statuses() == [blk.OK]

    def test_discard_reaches_the_host_segment_by_segment(self, slow):
        payload = [segment(8, 8), segment(64, 16)]
        assert slow.ask(blk.T_DISCARD, payload=payload) == (blk.OK, b"")
        assert slow.image.calls == [("discard", 4096, 4096), ("discard", 32768, 8192)]

    def test_write_zeroes_passes_the_unmap_flag_of_each_segment(self, slow):
        payload = [segment(8, 8, 1) + segment(64, 16)[:5], segment(64, 16)[5:]]
        assert slow.ask(blk.T_WRITE_ZEROES, payload=payload) == (blk.OK, b"")
        assert slow.image.calls == [("zero", 4096, 4096, True), ("zero", 32768, 8192, False)]

    def test_zeroed_sectors_read_as_zeros(self, any_ring):
        disk = any_ring()
        assert disk.ask(blk.T_WRITE_ZEROES, payload=[segment(1, 2)])[0] == blk.OK
        assert disk.ask(blk.T_IN, 0, sizes=[2048]) == (
            blk.OK,
            CONTENT[:512] + bytes(1024) + CONTENT[1536:2048],
        )

    def test_every_queue_is_served(self, make_disk):
        disk = make_disk(queues=3)
        for queue in range(3):
            assert disk.ask(blk.T_IN, queue, sizes=[512], queue=queue)[0] == blk.OK


class TestRefusedRequests:
    @pytest.mark.parametrize("kind", [2, 3, 5, 14, 15, 24, 0x8000_0000, 0xFFFF_FFFF])
    def test_unknown_type_is_unsupported(self, disk, kind):
        assert disk.ask(kind, sizes=[512])[0] == blk.UNSUPP

    @pytest.mark.parametrize(
        ("sector", "size"),
        [(SECTORS, 512), (SECTORS - 1, 1024), (1 << 55, 512), ((1 << 64) - 1, 512), (0, 100), (0, 513)],
    )
    def test_range_that_is_not_on_the_disk_is_an_error(self, disk, sector, size):
        assert disk.ask(blk.T_IN, sector, sizes=[size])[0] == blk.IOERR
        assert disk.ask(blk.T_OUT, sector, [b"x" * size])[0] == blk.IOERR
        assert disk.content() == CONTENT
        assert disk.content(SIZE, 1) == b""

    @pytest.mark.parametrize("kind", [blk.T_IN, blk.T_OUT])
    def test_request_that_would_take_minutes_is_an_error(self, any_ring, kind):
        # 65 MiB of the same 4: a driver needs no memory for it, and a disk of that size nothing on the host.
        disk = any_ring(SlowImage, image={"size": 1 << 30})
        driver = disk.drivers[0]
        linked = 0 if disk.packed else 1  # the flag NEXT
        written = 2 if kind == blk.T_IN else 0
        status = driver.allocate(b"\xff")
        header = (driver.allocate(struct.pack("<IIQ", kind, 0, 0)), 16, linked)
        pages = [(RAM, 4 << 20, written | linked)] * 16 + [(RAM, 512, written | linked)]
        driver.add_table([header, *pages, (status, 1, 2)])
        disk.kick()
        assert len(driver.collect()) == 1
        assert disk.memory.read(status, 1) == bytes([blk.IOERR])
        assert disk.image.calls == []

    def test_write_to_a_read_only_disk_is_an_error(self, make_disk):
        disk = make_disk(image={"read_only": True})
        assert disk.ask(blk.T_OUT, 0, [b"x" * 512])[0] == blk.IOERR
        assert disk.ask(blk.T_DISCARD, payload=[segment(0, 8)])[0] == blk.UNSUPP
        assert disk.ask(blk.T_WRITE_ZEROES, payload=[segment(0, 8)])[0] == blk.UNSUPP
        assert disk.ask(blk.T_FLUSH)[0] == blk.OK
        assert disk.content() == CONTENT

    def test_discard_that_was_not_negotiated_is_unsupported(self, make_disk):
        disk = make_disk(SlowImage, features=0)
        assert disk.ask(blk.T_DISCARD, payload=[segment(0, 8)])[0] == blk.UNSUPP
        assert disk.ask(blk.T_WRITE_ZEROES, payload=[segment(0, 8)])[0] == blk.UNSUPP
        assert disk.image.calls == []

    @pytest.mark.parametrize(
        ("kind", "flags"), [(blk.T_DISCARD, 1), (blk.T_DISCARD, 2), (blk.T_WRITE_ZEROES, 2)]
    )
    def test_unknown_flag_is_unsupported_and_nothing_is_done(self, slow, kind, flags):
        assert slow.ask(kind, payload=[segment(0, 8), segment(8, 8, flags)])[0] == blk.UNSUPP
        assert slow.image.calls == []

    @pytest.mark.parametrize("kind", [blk.T_DISCARD, blk.T_WRITE_ZEROES])
    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            segment(0, 8)[:-1],
            segment(0, 8) * 33,
            segment(SECTORS, 1),
            segment(0, SECTORS + 1),
            segment((1 << 64) - 1, 1),
            segment(0, 0xFFFF_FFFF),
        ],
    )
    def test_segments_that_cannot_be_are_an_error_and_nothing_is_done(self, slow, kind, payload):
        assert slow.ask(kind, payload=[payload] if payload else [])[0] == blk.IOERR
        assert slow.image.calls == []

    def test_short_header_is_an_error(self, disk):
        assert disk.ask(0, header=b"\0" * 15)[0] == blk.IOERR

    def test_chain_without_a_header_is_an_error(self, disk):
        disk.drivers[0].add_chain([], [1])
        disk.kick()
        assert disk.statuses() == [blk.IOERR]

    def test_chain_without_room_for_a_status_is_counted_and_given_back(self, disk):
        disk.drivers[0].add_chain([struct.pack("<IIQ", blk.T_FLUSH, 0, 0)], [])
        disk.kick()
        assert [done.written for done in disk.drivers[0].collect()] == [0]
        assert disk.device.malformed == 1
        assert disk.ask(blk.T_FLUSH)[0] == blk.OK

    @pytest.mark.parametrize("header", [True, False])
    def test_buffers_of_4_gib_do_no_harm(self, any_ring, header):
        # The whole memory again and again, as only a hostile driver does it.
        disk = any_ring()
        driver = disk.drivers[0]
        linked = 0 if disk.packed else 1  # the flag NEXT
        table = [(RAM, 4 << 20, 2 | linked)] * 1023 + [(RAM, 4 << 20, 2)]
        if header:
            table[0] = (driver.allocate(struct.pack("<IIQ", blk.T_IN, 0, 0)), 16, linked)
        driver.add_table(table)
        disk.kick()
        assert not disk.broken
        assert len(driver.collect()) == 1
        assert disk.memory.read(RAM + (4 << 20) - 1, 1) == bytes([blk.IOERR])

    def test_header_outside_of_memory_needs_a_reset(self, disk):
        disk.drivers[0].add_raw([(0x10, 16, 0)])
        disk.kick()
        assert disk.broken


class TestHostErrors:
    @pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
    @pytest.mark.parametrize(
        ("kind", "payload"),
        [
            (blk.T_OUT, [b"x" * 512]),
            (blk.T_FLUSH, []),
            (blk.T_DISCARD, [segment(0, 8)]),
            (blk.T_WRITE_ZEROES, [segment(0, 8)]),
        ],
    )
    def test_hosts_error_reaches_the_guest_and_the_next_request_works(self, slow, kind, payload, code):
        slow.image.error = code
        assert slow.ask(kind, 0, payload)[0] == blk.IOERR
        slow.image.error = None
        assert slow.ask(kind, 0, payload)[0] == blk.OK

    def test_failed_read_is_an_error(self, slow):
        slow.image.error = errno.EIO
        assert slow.ask(blk.T_IN, sizes=[512])[0] == blk.IOERR

    def test_image_that_became_shorter_is_an_error_at_once_or_later(self, disk):
        os.ftruncate(disk.fd, 512)
        assert disk.ask(blk.T_IN, 1, sizes=[512])[0] == blk.IOERR
        assert disk.ask(blk.T_IN, 0, sizes=[512])[0] == blk.OK


class TestConfiguration:
    def test_map_describes_the_image(self, make_disk):
        device = make_disk(image={"block_size": 512, "physical": 4096}, queues=4).device
        assert device.read(0, 8) == SECTORS
        assert device.read(0, 4) == SECTORS and device.read(4, 4) == 0
        assert device.read(12, 4) == 254
        assert device.read(20, 4) == 512
        assert (device.read(24, 1), device.read(25, 1), device.read(26, 2)) == (3, 0, 8)
        assert device.read(34, 2) == 4
        assert device.read(36, 4) == 1 << 21 and device.read(40, 4) == 32 and device.read(44, 4) == 8
        assert device.read(48, 4) == 1 << 18 and device.read(52, 4) == 32 and device.read(56, 1) == 1

    def test_disk_of_large_blocks_says_so(self, make_disk):
        device = make_disk(image={"block_size": 4096, "physical": 4096}).device
        assert (device.read(20, 4), device.read(24, 1), device.read(26, 2)) == (4096, 0, 1)
        assert device.read(44, 4) == 8

    def test_reset_keeps_what_the_image_says(self, make_disk):
        disk = make_disk()
        disk.reset()
        assert disk.device.read(0, 8) == SECTORS

    def test_offered_features_follow_image_and_queues(self):
        with Disk(DiskImage(memory_file(), SIZE, read_only=True)) as disk:
            assert disk.device.offered() == 1 << 2 | 1 << 5 | 1 << 6 | 1 << 10
        with Disk(DiskImage(memory_file(), SIZE), queues=2) as disk:
            wanted = 1 << 2 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14
            assert disk.device.offered() == wanted

    @staticmethod
    def durable(disk):
        disk.image.calls.clear()
        assert disk.ask(blk.T_OUT, 0, [b"x" * 512])[0] == blk.OK
        ((_, _, durable),) = disk.image.calls
        return durable

    def test_driver_that_flushes_gets_a_write_back_cache(self, slow):
        assert slow.device.read(32, 1) == 1
        assert not self.durable(slow)

    def test_driver_that_cannot_flush_has_every_write_on_disk(self, make_disk):
        disk = make_disk(SlowImage, features=1 << blk.DISCARD | 1 << blk.WRITE_ZEROES)
        assert disk.device.read(32, 1) == 0
        assert self.durable(disk)
        disk.image.calls.clear()
        disk.ask(blk.T_DISCARD, payload=[segment(0, 8)])
        disk.ask(blk.T_WRITE_ZEROES, payload=[segment(0, 8)])
        assert [call[0] for call in disk.image.calls] == ["discard", "flush", "zero", "flush"]

    def test_driver_turns_the_cache_off_and_on(self, slow):
        slow.device.write(32, 1, 0)
        assert self.durable(slow)
        slow.device.write(32, 1, 1)
        assert not self.durable(slow)

    def test_cache_cannot_be_turned_off_without_the_feature(self, make_disk):
        disk = make_disk(SlowImage, features=1 << blk.FLUSH)
        disk.device.write(32, 1, 0)
        assert disk.device.read(32, 1) == 1
        assert not self.durable(disk)

    def test_cache_setting_is_gone_after_a_reset(self, slow):
        slow.device.write(32, 1, 0)
        slow.reset()
        assert slow.device.read(32, 1) == 1


class TestState:
    @pytest.mark.parametrize(
        ("name", "image", "queues"),
        [
            ("CAPACITY", {"size": SIZE - 512}, 1),
            ("CAPACITY", {"size": SIZE + 512}, 1),
            ("BLK_SIZE", {"block_size": 4096}, 1),
            ("MAX_DISCARD_SECTORS", {"read_only": True}, 1),
            ("NUM_QUEUES", {}, 2),
        ],
    )
    def test_state_of_another_disk_is_refused_and_changes_nothing(self, make_disk, name, image, queues):
        state = make_disk().device.state()
        other = make_disk(image=image, queues=queues).device
        before = other.state()
        with pytest.raises(ConfigError, match=name):
            other.load_state(state)
        assert other.state() == before

    def test_state_goes_over_to_the_same_disk(self, make_disk):
        disk = make_disk()
        disk.device.write(32, 1, 0)
        other = make_disk().device
        other.load_state(disk.device.state())
        assert other.WRITEBACK == 0


class TestWorkers:
    def test_cached_read_does_not_go_to_a_worker(self, make_disk):
        disk = make_disk()
        disk.workers.held = True
        assert disk.ask(blk.T_IN, sizes=[4096])[0] == blk.OK
        assert disk.ask(blk.T_OUT, 0, [b"x" * 512])[0] == blk.OK

    def test_more_than_a_pass_may_copy_goes_to_a_worker(self, make_disk, monkeypatch):
        monkeypatch.setattr(blk, "_AT_ONCE", 4096)
        disk = make_disk()
        disk.workers.held = True
        for sector in range(3):
            disk.add(blk.T_IN, sector, sizes=[2048])
        disk.kick()
        assert disk.statuses() == [blk.OK, blk.OK]
        disk.workers.release()
        disk.loop.run()
        assert disk.statuses() == [blk.OK]

    def test_slow_requests_go_to_several_workers_but_not_more(self, slow):
        slow.workers.held = True
        for sector in range(10):
            slow.add(blk.T_IN, sector, sizes=[512])
        slow.kick()
        assert len(slow.workers.jobs) == 4
        slow.workers.release()
        slow.loop.run()
        assert slow.statuses() == [blk.OK] * 10

    def test_one_worker_takes_a_batch_and_its_results_come_back_together(self, slow):
        slow.workers.held = True
        for sector in range(8):
            slow.add(blk.T_IN, sector, sizes=[512])
        slow.kick()
        slow.workers.jobs.popleft()()
        assert len(slow.image.calls) == 8
        posted = len(slow.loop.calls)
        slow.loop.run()
        assert (posted, slow.statuses()) == (2, [blk.OK] * 8)
        assert slow.interrupts.queues == {0: 1}

    def test_more_than_all_batches_is_finished(self, slow, monkeypatch):
        monkeypatch.setattr(jobs, "_BATCH", 2)
        for sector in range(10):
            slow.add(blk.T_IN, sector, sizes=[512])
        slow.kick()
        assert slow.statuses() == [blk.OK] * 10

    def test_request_that_comes_while_workers_end_is_begun(self, slow):
        slow.workers.held = True
        for sector in range(4):
            slow.add(blk.T_IN, sector, sizes=[512])
        slow.kick()
        slow.workers.release()  # they end; the loop has not heard of it
        slow.add(blk.T_IN, 9, sizes=[512])
        slow.kick()
        slow.workers.release()
        slow.loop.run()
        assert slow.statuses() == [blk.OK] * 5


class TestResets:
    def test_reset_forgets_what_no_worker_has_begun(self, slow):
        slow.workers.held = True
        for sector in range(6):
            slow.add(blk.T_OUT, sector, [b"x" * 512])
        slow.kick()
        with slow.core.lock:
            after = slow.core.write_status(0)
        slow.workers.release()
        after()
        slow.loop.run()
        assert slow.image.calls == []
        assert slow.content() == CONTENT

    def test_reset_waits_for_io_in_flight_and_drops_its_result(self, slow):
        reset_begun, read_done = threading.Event(), threading.Event()
        read = slow.image.read

        def late_read(views, offset):
            assert reset_begun.wait(30)
            read(views, offset)
            read_done.set()

        slow.image.read = late_read
        slow.workers.held = True
        slow.add(blk.T_IN, 1, sizes=[512])
        slow.kick()
        worker = threading.Thread(target=slow.workers.release)
        worker.start()
        # The worker is at it once it took the only job; it waits for the reset to begin.
        while slow.device._jobs._waiting:
            pass
        with slow.core.lock:
            after = slow.core.write_status(0)
        reset_begun.set()
        after()
        assert read_done.is_set()
        worker.join()
        slow.loop.run()
        assert slow.drivers[0].collect() == []

    def test_disk_works_again_after_a_reset_in_flight(self, slow):
        slow.workers.held = True
        slow.add(blk.T_IN, 1, sizes=[512])
        slow.kick()
        with slow.core.lock:
            after = slow.core.write_status(0)
        slow.workers.held = False
        slow.workers.release()
        after()
        slow.loop.run()
        slow.drivers[0].reset()
        slow.start()
        assert slow.ask(blk.T_IN, 1, sizes=[512]) == (blk.OK, CONTENT[512:1024])

    def test_reset_of_one_queue_spares_the_others(self, make_disk):
        disk = make_disk(SlowImage, queues=2)
        disk.workers.held = True
        for sector in range(6):
            disk.add(blk.T_OUT, sector, [b"x" * 512], queue=sector % 2)
        for queue in range(2):
            disk.kick(queue)
        with disk.core.lock:
            disk.core.queue_select = 0
            after = disk.core.disable_queue()
        disk.workers.held = False
        disk.workers.release()
        after()
        disk.loop.run()
        assert sorted(offset for _, offset, _ in disk.image.calls) == [512, 1536, 2560]
        assert disk.statuses(1) == [blk.OK] * 3
        assert disk.drivers[0].collect() == []

    def test_result_for_a_queue_that_was_reset_does_not_touch_memory(self, make_disk):
        disk = make_disk(SlowImage)
        disk.workers.held = True
        address = disk.drivers[0].allocate(b"\x77")
        header = disk.drivers[0].allocate(struct.pack("<IIQ", blk.T_FLUSH, 0, 0))
        disk.drivers[0].add_chain([(header, 16)], [(address, 1)])
        disk.kick()
        disk.workers.jobs.popleft()()  # done, but the loop has not heard of it
        with disk.core.lock:
            after = disk.core.disable_queue()
        after()
        disk.loop.run()
        assert disk.memory.read(address, 1) == b"\x77"

    def test_memory_can_be_closed_with_results_still_on_their_way(self):
        with Disk(SlowImage(memory_file())) as disk:
            disk.workers.held = True
            disk.add(blk.T_IN, 1, sizes=[512])
            disk.kick()
            disk.workers.release()
        # Closing the rig closes guest memory, which refuses while a view of it is alive.

    def test_kick_after_the_end_does_nothing(self, slow):
        queue = slow.core.session.queues[0]
        slow.reset()
        slow.device.on_kick(queue)


class TestSettings:
    @staticmethod
    def open(body):
        settings = parse(f"--disk {body}", body, Blk.SETTINGS, Blk.POSITIONAL)
        return Blk.open(settings, make_services())

    def refusal(self, body):
        with pytest.raises(ConfigError) as error:
            self.open(body)
        return str(error.value)

    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "disk.img"
        path.write_bytes(CONTENT)
        return str(path)

    def test_file_alone_is_enough(self, path):
        device = self.open(path)
        assert device.read(0, 8) == SECTORS
        assert len(device.queue_sizes) == 1
        device.close()

    def test_everything_can_be_said(self, path):
        device = self.open(f"{path},rw,direct,id=data,queues=4,format=raw")
        assert len(device.queue_sizes) == 4
        device.close()

    def test_read_only_disk_offers_it(self, path):
        device = self.open(f"{path},ro")
        assert device.offered() >> blk.RO & 1
        device.close()

    def test_close_gives_the_descriptor_and_the_lock_back_and_may_come_twice(self, path):
        before = os.listdir("/proc/self/fd")
        device = self.open(path)
        device.close()
        device.close()
        assert os.listdir("/proc/self/fd") == before
        self.open(path).close()

    def test_no_file_is_refused(self):
        assert self.refusal("ro") == "--disk ro needs file=."

    def test_ro_and_rw_together_are_refused(self, path):
        assert (
            self.refusal(f"{path},ro,rw") == f"--disk {path},ro,rw is either ro or rw; leave one of them out."
        )

    @pytest.mark.parametrize("name", ["x" * 21, "ümlaut", "a\tb"])
    def test_id_that_does_not_fit_is_refused(self, path, name):
        assert "id takes up to 20 printable ASCII characters" in self.refusal(f"{path},id={name}")

    @pytest.mark.parametrize("queues", ["0", "65", "many"])
    def test_number_of_queues_is_limited(self, path, queues):
        assert "queues takes a whole number from 1 to 64" in self.refusal(f"{path},queues={queues}")

    def test_what_is_wrong_with_the_file_is_said(self, tmp_path):
        body = str(tmp_path / "none.img")
        assert self.refusal(body).startswith(f"--disk {body}: {body} does not exist")


class RunningLoop(EventLoop):
    """A real loop, where a Rig expects one that it runs itself."""

    def run(self):
        pass


@pytest.mark.parametrize("queues", [1, 2])
def test_on_real_threads_every_request_is_answered_across_resets(queues):
    errors = []
    loop, workers = RunningLoop(errors.append), WorkerThreads(errors.append)
    loop.start()
    answered = threading.Semaphore(0)
    image = SlowImage(memory_file())
    disk = Rig(Blk(image, queues=queues), size=64, services=Services(loop, workers))
    disk.interrupts.queue_interrupt = lambda index: answered.release()
    chooser = random.Random(2)
    for turn in range(6):
        disk.start()
        for _ in range(8):
            asked = {}
            for index in range(16):
                driver, sector = disk.drivers[index % queues], chooser.randrange(SECTORS)
                token = driver.add_chain([struct.pack("<IIQ", blk.T_IN, 0, sector)], [512, 1])
                asked[driver, token] = CONTENT[512 * sector : 512 * (sector + 1)] + b"\0"
            for doorbell in disk.doorbells:
                os.eventfd_write(doorbell.fd, 1)
            while asked:
                assert answered.acquire(timeout=PATIENCE)
                with disk.core.lock:
                    for driver in disk.drivers:
                        for done in driver.collect():
                            assert asked.pop((driver, done.token)) == done.data
        for index in range(16):  # and a reset with these in flight
            disk.drivers[index % queues].add_chain([struct.pack("<IIQ", blk.T_IN, 0, turn)], [512, 1])
        for doorbell in disk.doorbells:
            os.eventfd_write(doorbell.fd, 1)
        in_time(disk.reset)
        for driver in disk.drivers:
            driver.reset()
    in_time(workers.stop)
    in_time(loop.stop)
    disk.workers.held, disk.workers.release = False, lambda: None  # nothing of a fake's is left to do
    disk.__exit__()
    assert errors == []
