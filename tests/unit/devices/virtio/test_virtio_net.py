# SPDX-License-Identifier: Apache-2.0
"""virtio-net on a fake driver and a fake tap: frames, control queue, link, several queues, attacks."""

import os
import select
import socket
import struct
from errno import EINVAL, EISDIR

import pytest
from fakes.native import BACKENDS, needs_native
from fakes.tap import CountedFrames, FakeTap
from fakes.virtio import Rig

from pyvmm.devices.net import bits as netbits
from pyvmm.devices.net import pair as netpair
from pyvmm.devices.net.tap import TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN
from pyvmm.devices.virtio import bits, net
from pyvmm.devices.virtio.net import Net
from pyvmm.errors import ConfigError
from pyvmm.ring import NATIVE, PLAIN

MAC = bytes.fromhex("525400123456")
HEADER = bytes(12)
RX, TX = 0, 1
OK, ERR = b"\x00", b"\x01"


class NetRig(Rig):
    """A card on a fake tap. ``wires`` are the far ends of its queues."""

    def __init__(self, *, queues=1, packed=False, size=16, event_idx=False, backend=None, **options):
        self.tap = FakeTap(queues)
        device = Net(self.tap.end, MAC, **options)
        super().__init__(device, packed=packed, size=size, event_idx=event_idx, backend=backend)
        self.wires = self.tap.far
        self.wire = self.wires[0]

    def send(self, *pieces, queue=TX):
        """The guest sends one frame, in these pieces."""
        self.drivers[queue].add_chain(pieces)
        self.kick(queue)

    def offer(self, *sizes, queue=RX):
        """The guest offers one receive buffer, in pieces of these sizes."""
        self.drivers[queue].add_chain([], sizes)
        self.kick(queue)

    def arrive(self, frame, wire=0, header=HEADER):
        """A frame comes from the host."""
        self.wires[wire].send(header + frame)
        self.loop.run()

    def received(self, queue=RX):
        """What the guest got in each buffer, without the header of the first one."""
        return [done.data for done in self.drivers[queue].collect()]

    def seen(self, wire=0):
        """Every frame that reached the host, with its header."""
        frames = []
        while select.select([self.wires[wire]], [], [], 0)[0]:
            frames.append(self.wires[wire].recv(1 << 17))
        return frames

    def counted(self, monkeypatch):
        """From now on, one entry for each time that the port is asked for a frame, or to take one."""
        reads, writes = [], []
        readv, writev = os.readv, os.writev
        monkeypatch.setattr(os, "readv", lambda *call: reads.append(call) or readv(*call))
        monkeypatch.setattr(os, "writev", lambda *call: writes.append(call) or writev(*call))
        for queue in self.core.session.queues[:2]:
            if queue.ring.frames is not None:
                monkeypatch.setattr(queue.ring, "frames", CountedFrames(queue.ring.frames, reads, writes))
        return reads, writes

    def replace_port(self, path):
        """Whatever the port is asked for now, it is asked of this file."""
        fd = os.open(path, os.O_RDONLY)
        os.dup2(fd, self.tap.end.ports[0].fd)
        os.close(fd)

    def command(self, *pieces, answer=(1,), queue=None):
        """Send a command; the answer, and how many bytes were written."""
        queue = len(self.drivers) - 1 if queue is None else queue
        self.drivers[queue].add_chain(pieces, answer)
        self.kick(queue)
        (done,) = self.drivers[queue].collect()
        return done.data

    @property
    def counters(self):
        return self.device.counters


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def make(request, backend):
    """Makes started rigs. ``without``: features the driver does not take."""
    rigs = []

    def make(*, without=(), started=True, **options):
        rig = NetRig(packed=request.param, backend=backend, **options)
        rigs.append(rig)
        if started:
            rig.start(rig.device.offered() & ~bits.feature_set(*without))
        return rig

    yield make
    for rig in rigs:
        rig.__exit__()
        rig.tap.close()


def frame(size, start=0):
    return bytes((start + i * 7) & 0xFF for i in range(size))


class TestTransmit:
    def test_frame_reaches_the_host_with_its_header(self, make):
        rig = make()
        header = b"\x01\x01" + bytes(10)
        rig.send(header, frame(60))
        assert rig.seen() == [header + frame(60)]
        assert [done.written for done in rig.drivers[TX].collect()] == [0]
        assert rig.interrupts.queues == {TX: 1}

    def test_frame_in_odd_pieces_arrives_whole(self, make):
        rig = make()
        whole = HEADER + frame(100)
        rig.send(whole[:5], whole[5:13], whole[13:14], whole[14:])
        assert rig.seen() == [whole]

    def test_largest_frame_is_sent(self, make):
        rig = make()
        rig.send(HEADER, frame(netbits.LARGEST_FRAME - 12))
        assert [len(sent) for sent in rig.seen()] == [netbits.LARGEST_FRAME]

    @pytest.mark.parametrize("size", [0, 1, 11, 12, 25, netbits.LARGEST_FRAME + 1])
    def test_what_is_no_frame_is_given_back_and_counted(self, make, size):
        rig = make()
        rig.send(frame(size))
        assert rig.seen() == []
        assert len(rig.drivers[TX].collect()) == 1
        assert rig.counters.malformed == 1
        assert not rig.broken

    def test_buffer_for_receiving_in_the_transmit_queue_is_given_back(self, make):
        rig = make()
        rig.drivers[TX].add_chain([], [2000])
        rig.kick(TX)
        assert [done.written for done in rig.drivers[TX].collect()] == [0]
        assert rig.counters.malformed == 1

    def test_full_port_holds_frames_back_and_loses_none(self, make):
        rig = make(size=64)
        count = 0
        while not rig.drivers[TX].in_flight:
            rig.send(HEADER, frame(1500, count))
            rig.drivers[TX].collect()
            count += 1
        for _ in range(3):
            rig.drivers[TX].add_chain([HEADER, frame(1500, count)])
            count += 1
        rig.kick(TX)
        arrived = []
        while batch := rig.seen():
            arrived += batch
            rig.loop.run()
        assert arrived == [HEADER + frame(1500, number) for number in range(count)]
        rig.drivers[TX].collect()
        assert rig.drivers[TX].in_flight == []

    def test_frame_the_host_refuses_costs_only_itself(self, make):
        rig = make()
        with socket.socket(fileno=os.dup(rig.tap.end.ports[0].fd)) as near:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # as small as it can be
        rig.send(HEADER, frame(60000))
        rig.send(HEADER, frame(61))
        assert rig.seen() == [HEADER + frame(61)]
        assert rig.counters.tx_dropped == 1
        assert len(rig.drivers[TX].collect()) == 2

    def test_frame_of_more_pieces_than_the_kernel_takes_arrives_whole(self, make):
        rig = make()
        whole = HEADER + frame(1012)
        rig.drivers[TX].add_chain([whole[at : at + 1] for at in range(len(whole))], indirect=True)
        rig.kick(TX)
        assert rig.seen() == [whole]


def refusing(kind, errno):
    """A method that always fails. Each time anew: an exception keeps what its traceback knows."""

    def refuse(*_):
        raise kind(errno, "gone")

    return refuse


class TestReceive:
    def test_frame_arrives_in_one_buffer(self, make):
        rig = make()
        rig.offer(2000)
        rig.arrive(frame(60), header=b"\x02" + bytes(11))
        assert rig.received() == [b"\x02" + bytes(9) + b"\x01\x00" + frame(60)]
        assert rig.interrupts.queues == {RX: 1}

    def test_large_frame_fills_several_buffers_and_says_how_many(self, make):
        rig = make()
        for _ in range(5):
            rig.offer(1000)
        rig.arrive(frame(2500))
        assert b"".join(rig.received()) == bytes(10) + b"\x03\x00" + frame(2500)

    def test_next_frame_begins_in_the_next_buffer(self, make):
        rig = make()
        for _ in range(4):
            rig.offer(1000)
        rig.arrive(frame(1500))
        rig.arrive(frame(100))
        first, second, third = rig.received()
        assert first + second == bytes(10) + b"\x02\x00" + frame(1500)
        assert third == bytes(10) + b"\x01\x00" + frame(100)

    def test_frame_waits_for_the_buffers_it_lacks(self, make):
        rig = make()
        rig.offer(1000)
        rig.offer(100)
        rig.arrive(frame(5000))
        rig.arrive(frame(77))
        assert rig.received() == []
        for _ in range(4):
            rig.offer(1000)
        assert b"".join(rig.received()) == bytes(10) + b"\x06\x00" + frame(5000)
        rig.offer(1000)
        assert rig.received() == [bytes(10) + b"\x01\x00" + frame(77)]
        assert rig.counters.rx_dropped == 0

    def test_frame_goes_on_in_a_buffer_that_begins_in_one_bank_and_ends_in_another(self, make):
        rig = make()
        rig.memory.add(0xC000_0000, 4096)
        rig.offer(1000)
        rig.drivers[RX].add_chain([], [300, (0xC000_0000, 300)])
        rig.kick(RX)
        rig.arrive(frame(1400))
        assert b"".join(rig.received()) == bytes(10) + b"\x02\x00" + frame(1400)

    def test_frame_arrives_in_buffers_of_single_bytes(self, make):
        rig = make(size=64)
        for _ in range(50):
            rig.offer(1)
        rig.arrive(frame(20))
        assert b"".join(rig.received()) == bytes(10) + b"\x20\x00" + frame(20)

    def test_frames_are_left_with_the_host_while_there_are_no_buffers(self, make):
        rig = make()
        rig.arrive(frame(60))
        (watch,) = [watch for watch in rig.loop.watches if watch.fd == rig.tap.end.ports[0].fd]
        assert watch.events == 0
        rig.offer(2000)
        assert rig.received() == [bytes(10) + b"\x01\x00" + frame(60)]
        assert watch.events == 0
        rig.offer(2000)
        assert watch.events == select.EPOLLIN

    def test_driver_without_mergeable_buffers_gets_one_buffer_a_frame(self, make):
        rig = make(without=[netbits.MRG_RXBUF])
        rig.offer(12, 2000)
        rig.offer(12, 2000)
        rig.arrive(frame(1500))
        assert rig.received() == [bytes(10) + b"\x01\x00" + frame(1500)]

    def test_frame_too_large_for_a_buffer_is_dropped_without_mergeable_buffers(self, make):
        rig = make(without=[netbits.MRG_RXBUF])
        rig.offer(100)
        rig.arrive(frame(1500))
        rig.arrive(frame(60))
        assert rig.received() == [bytes(10) + b"\x01\x00" + frame(60)]
        assert rig.counters.rx_dropped == 1

    def test_buffer_without_room_is_given_back_and_counted(self, make):
        rig = make()
        rig.drivers[RX].add_chain([b"for reading"])
        rig.offer(2000)
        rig.arrive(frame(60))
        assert rig.received() == [b"", bytes(10) + b"\x01\x00" + frame(60)]
        assert rig.counters.malformed == 1

    def test_driver_that_offers_only_buffers_without_room_does_not_stall_the_loop(self, make):
        rig = make()
        for _ in range(16):
            rig.drivers[RX].add_chain([b"x"])
        rig.kick(RX)
        assert rig.received() == [b""] * 16

    def test_pass_over_a_flooded_port_is_bounded(self, make):
        rig = make(size=256)
        for _ in range(100):
            rig.drivers[RX].add_chain([], [1600])
        rig.kick(RX)
        for _ in range(90):
            rig.wire.send(HEADER + frame(60))
        rig.loop.run_once()
        assert len(rig.received()) == netpair._FRAMES_PER_PASS
        rig.loop.run()
        assert len(rig.received()) == 90 - netpair._FRAMES_PER_PASS

    def test_driver_hears_of_large_frames_before_all_of_them_are_read(self, make):
        rig = make(size=64)
        for _ in range(51):
            rig.drivers[RX].add_chain([], [4096])
        rig.kick(RX)
        for number in range(3):
            rig.wire.send(HEADER + frame(65000, number))
        rig.loop.run_once()
        assert len(rig.received()) == 32
        assert rig.interrupts.queues == {RX: 1}
        rig.loop.run()
        assert b"".join(rig.received()) == bytes(10) + b"\x10\x00" + frame(65000, 2)

    def test_port_whose_frames_come_alone_is_not_asked_for_another_each_time(self, make, monkeypatch):
        rig = make()
        calls, _ = rig.counted(monkeypatch)
        for number in range(netpair._ALONE_PASSES + 2):
            for _ in range(rig.drivers[RX].free_slots):
                rig.drivers[RX].add_chain([], [2000])
            rig.kick(RX)
            calls.clear()
            rig.arrive(frame(60, number))
            assert rig.received() == [bytes(10) + b"\x01\x00" + frame(60, number)]
            assert len(calls) == (2 if number % (netpair._ALONE_PASSES + 1) == 0 else 1)

    def test_frames_after_some_that_came_alone_all_arrive(self, make):
        rig = make()
        rig.offer(2000)
        rig.arrive(frame(60))
        rig.received()
        for _ in range(8):
            rig.drivers[RX].add_chain([], [2000])
        rig.kick(RX)
        for number in range(8):
            rig.wire.send(HEADER + frame(60, number))
        rig.loop.run()
        assert rig.received() == [bytes(10) + b"\x01\x00" + frame(60, number) for number in range(8)]

    def test_large_frames_that_waited_for_buffers_all_arrive(self, make):
        rig = make(size=64)
        for number in range(3):
            rig.arrive(frame(65000, number))
        for _ in range(48):
            rig.drivers[RX].add_chain([], [4096])
        rig.kick(RX)
        one = bytes(10) + b"\x10\x00"
        assert b"".join(rig.received()) == b"".join(one + frame(65000, number) for number in range(3))

    def test_buffers_in_many_pieces_are_taken_only_as_they_are_needed(self, make, backend):
        rig = make()
        for _ in range(2):
            rig.drivers[RX].add_chain([], [1] * netpair._MOST_VIEWS, indirect=True)
        rig.kick(RX)
        assert rig.core.session.queues[RX].in_flight == {PLAIN: 1, NATIVE: 0}[backend]
        for number in range(2):
            rig.arrive(frame(100, number))
        assert rig.received() == [bytes(10) + b"\x01\x00" + frame(100, number) for number in range(2)]

    def test_frame_that_never_fits_into_so_many_pieces_is_dropped(self, make):
        rig = make()
        rig.drivers[RX].add_chain([], [1] * netpair._MOST_VIEWS, indirect=True)
        rig.kick(RX)
        rig.arrive(frame(1500))
        rig.arrive(frame(60))
        assert rig.received() == [bytes(10) + b"\x01\x00" + frame(60)]
        assert rig.counters.rx_dropped == 1

    def test_buffer_of_more_pieces_than_the_kernel_takes_is_given_back_and_counted(self, make):
        rig = make()
        rig.drivers[RX].add_chain([], [2] * (netpair._MOST_VIEWS + 1), indirect=True)
        rig.offer(2000)
        rig.arrive(frame(60))
        assert rig.received() == [b"", bytes(10) + b"\x01\x00" + frame(60)]
        assert rig.counters.malformed == 1

    def test_runt_from_the_host_is_dropped(self, make):
        rig = make()
        rig.offer(2000)
        rig.arrive(b"short")
        assert rig.received() == []
        assert rig.counters.rx_dropped == 1


@needs_native
class TestInC:
    """Which frames are moved without Python: nobody else can tell."""

    @pytest.fixture
    def backend(self):
        return NATIVE

    @pytest.fixture
    def in_python(self, monkeypatch):
        """One entry for each system call that Python makes for a frame."""
        calls = []
        readv, writev = os.readv, os.writev
        monkeypatch.setattr(os, "readv", lambda *call: calls.append("readv") or readv(*call))
        monkeypatch.setattr(os, "writev", lambda *call: calls.append("writev") or writev(*call))
        return calls

    def test_usual_frames_are(self, make, in_python):
        rig = make(size=64)
        for _ in range(50):
            rig.offer(1526)
        rig.arrive(frame(60))
        rig.arrive(frame(60000))
        rig.send(HEADER, frame(60))
        assert sum(map(len, rig.received())) == 2 * len(HEADER) + 60060
        assert in_python == []

    def test_frame_that_had_to_wait_for_buffers_is_not_but_the_next_one_is(self, make, in_python):
        rig = make(size=64)
        rig.offer(1000)
        rig.arrive(frame(2500))
        for _ in range(8):
            rig.offer(1000)
        rig.arrive(frame(60))
        assert b"".join(rig.received()) == bytes(10) + b"\x03\x00" + frame(2500) + (
            bytes(10) + b"\x01\x00" + frame(60)
        )
        assert in_python == []
        assert rig.core.session.queues[RX].in_flight == 0

    def test_buffer_that_is_none_is_not_but_the_next_one_is(self, make, in_python):
        rig = make()
        rig.drivers[RX].add_chain([b"for reading"])
        rig.offer(2000)
        rig.offer(2000)
        rig.arrive(frame(60))
        in_python.clear()
        rig.arrive(frame(61))
        assert rig.received()[1:] == [bytes(10) + b"\x01\x00" + frame(size) for size in (60, 61)]
        assert in_python == []

    def test_frame_that_the_port_does_not_take_stays_in_the_ring(self, make):
        rig = make(size=64)
        while not rig.drivers[TX].in_flight:
            rig.send(HEADER, frame(1500))
            rig.drivers[TX].collect()
        assert rig.core.session.queues[TX].in_flight == 0
        assert rig.device._workers[0]._held is None


class TestExchange:
    """A small frame out, its answer in, and so on: what a round trip costs besides the two frames."""

    ROUNDS = 2 * (netpair._ALONE_PASSES + 1)

    @pytest.fixture
    def rig(self, make):
        rig = make(size=64, event_idx=True)
        for _ in range(60):
            rig.drivers[RX].add_chain([], [1526])
        rig.drivers[RX].needs_kick()
        rig.kick(RX)
        return rig

    def exchange(self, rig, number):
        """As a driver does that asks for each interrupt; how many notifications the device wanted."""
        rx, tx = rig.drivers[RX], rig.drivers[TX]
        rx.enable_interrupts()
        tx.add_chain([HEADER + frame(54, number)])
        tx.enable_interrupts()
        wanted = tx.needs_kick()
        rig.kick(TX)
        (request,) = rig.seen()
        rig.arrive(request[len(HEADER) :])
        assert [done.data[len(HEADER) :] for done in rx.collect()] == [frame(54, number)]
        assert len(tx.collect()) == 1
        rx.add_chain([], [1526])
        return wanted + rx.needs_kick()

    def test_it_takes_one_notification_and_an_interrupt_each_way(self, rig):
        notifications = sum(self.exchange(rig, number) for number in range(self.ROUNDS))
        assert notifications == self.ROUNDS
        assert rig.interrupts.queues == {RX: self.ROUNDS, TX: self.ROUNDS}

    def test_it_wakes_the_loop_twice_and_nothing_waits_for_a_turn_or_a_timer(self, rig, monkeypatch):
        wakes, rest = [], []
        for watch in rig.loop.watches:
            callback = watch.callback
            watch.callback = lambda events, callback=callback: wakes.append(events) or callback(events)
            monkeypatch.setattr(watch, "modify", rest.append)
        monkeypatch.setattr(rig.loop, "call_soon", rest.append)
        monkeypatch.setattr(rig.loop, "call_later", lambda *later: rest.append(later))
        for number in range(self.ROUNDS):
            self.exchange(rig, number)
        assert len(wakes) == 2 * self.ROUNDS
        assert rest == []

    def test_it_takes_a_read_and_a_write_and_seldom_a_read_in_vain(self, rig, monkeypatch):
        reads, writes = rig.counted(monkeypatch)
        for number in range(self.ROUNDS):
            self.exchange(rig, number)
        assert len(writes) == self.ROUNDS
        assert len(reads) == self.ROUNDS + 2


class TestConfiguration:
    def test_driver_reads_address_link_and_sizes(self, make):
        rig = make(queues=2, mtu=1400)
        config = b"".join(rig.device.read(at, 1).to_bytes(1, "little") for at in range(6))
        assert config == MAC
        assert [rig.device.read(at, 2) for at in (6, 8, 10)] == [netbits.LINK_UP, 2, 1400]

    def test_driver_cannot_write_the_configuration(self, make):
        rig = make()
        for at in range(12):
            rig.device.write(at, 1, 0xFF)
        assert bytes(rig.device.MAC) == MAC
        assert rig.device.STATUS == netbits.LINK_UP

    @pytest.mark.parametrize(
        ("alone", "needed"),
        [
            (netbits.GUEST_TSO4, netbits.GUEST_CSUM),
            (netbits.GUEST_TSO6, netbits.GUEST_CSUM),
            (netbits.HOST_TSO4, netbits.CSUM),
            (netbits.HOST_TSO6, netbits.CSUM),
            (netbits.CTRL_MAC_ADDR, netbits.CTRL_VQ),
        ],
    )
    def test_feature_is_refused_without_the_one_it_needs(self, make, alone, needed):
        device = make(started=False).device
        assert not device.acceptable(1 << alone)
        assert device.acceptable(1 << alone | 1 << needed)

    def test_several_queues_and_mtu_are_offered_only_when_they_are_there(self, make):
        assert not make(started=False).device.offered() & bits.feature_set(netbits.MQ, netbits.MTU)
        many = make(started=False, queues=2, mtu=9000).device.offered()
        assert many & bits.feature_set(netbits.MQ, netbits.MTU) == bits.feature_set(netbits.MQ, netbits.MTU)


class TestControl:
    def test_negotiated_offloads_are_the_taps(self, make):
        rig = make()
        assert rig.tap.offloads == TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
        rig.reset()
        rig.start(bits.feature_set(netbits.GUEST_CSUM))
        assert rig.tap.offloads == TUN_F_CSUM

    def test_driver_changes_its_offloads(self, make):
        rig = make()
        word = bits.feature_set(netbits.GUEST_CSUM, netbits.GUEST_TSO4)
        assert rig.command(b"\x05\x00", struct.pack("<Q", word), queue=2) == OK
        assert rig.tap.offloads == TUN_F_CSUM | TUN_F_TSO4

    @pytest.mark.parametrize(
        "word", [1 << netbits.GUEST_TSO4, 1 << netbits.CSUM, 1 << 63, (1 << 64) - 1], ids=hex
    )
    def test_offloads_that_cannot_be_are_refused(self, make, word):
        rig = make()
        before = rig.tap.offloads
        assert rig.command(b"\x05\x00", struct.pack("<Q", word), queue=2) == ERR
        assert rig.tap.offloads == before

    def test_offload_that_was_not_negotiated_is_refused(self, make):
        rig = make(without=[netbits.GUEST_TSO6, netbits.GUEST_ECN])
        word = bits.feature_set(netbits.GUEST_CSUM, netbits.GUEST_TSO6)
        assert rig.command(b"\x05\x00", struct.pack("<Q", word), queue=2) == ERR

    def test_hosts_refusal_reaches_the_driver(self, make):
        rig = make()
        rig.tap.refuse[0x4004_54D0] = EINVAL
        assert rig.command(b"\x05\x00", bytes(8), queue=2) == ERR
        assert not rig.broken

    def test_driver_sets_its_address_until_it_resets_the_device(self, make):
        rig = make()
        assert rig.command(b"\x01\x01", bytes.fromhex("5254000000aa"), queue=2) == OK
        assert bytes(rig.device.MAC) == bytes.fromhex("5254000000aa")
        rig.reset()
        assert bytes(rig.device.MAC) == MAC

    @pytest.mark.parametrize(
        "command",
        [
            b"",
            b"\x04",
            b"\x04\x00",
            b"\x04\x00\x01",
            b"\x04\x00\x00\x00",
            b"\x04\x00\x03\x00",
            b"\x04\x00\x01\x00\x00",
            b"\x04\x01\x01\x00",
            b"\x05\x00\x00",
            b"\x01\x01short",
            b"\x01\x01\x01\x00\x5e\x00\x00\x01",
            b"\x00\x00\x01",
            b"\xff\xff" + bytes(4096),
        ],
        ids=lambda command: command[:8].hex() or "empty",
    )
    def test_command_that_makes_no_sense_is_answered_with_an_error(self, make, command):
        rig = make(queues=2)
        assert rig.command(command) == ERR
        assert not rig.broken

    def test_command_in_single_bytes_is_understood(self, make):
        rig = make(queues=2)
        assert rig.command(b"\x04", b"\x00", b"\x02", b"\x00") == OK

    def test_command_without_room_for_an_answer_is_given_back_empty(self, make):
        rig = make()
        assert rig.command(b"\x04\x00\x01\x00", answer=(), queue=2) == b""

    def test_only_the_first_byte_of_a_large_answer_is_written(self, make):
        rig = make()
        assert rig.command(b"\x01\x01", MAC, answer=(100,), queue=2) == OK


class TestSeveralQueues:
    def test_one_pair_is_used_until_the_driver_asks_for_more(self, make):
        rig = make(queues=2)
        assert rig.tap.queue_changes == [-1]
        assert rig.command(b"\x04\x00", b"\x02\x00") == OK
        assert rig.tap.queue_changes == [-1, 1]

    def test_every_pair_has_a_wire_of_its_own(self, make):
        rig = make(queues=2)
        rig.command(b"\x04\x00", b"\x02\x00")
        rig.send(HEADER, frame(60, 1), queue=1)
        rig.send(HEADER, frame(60, 3), queue=3)
        assert rig.seen(0) == [HEADER + frame(60, 1)]
        assert rig.seen(1) == [HEADER + frame(60, 3)]
        rig.offer(2000, queue=2)
        rig.arrive(frame(99), wire=1)
        assert rig.received(2) == [bytes(10) + b"\x01\x00" + frame(99)]

    def test_pair_out_of_use_is_left_alone_and_goes_on_later(self, make):
        rig = make(queues=2)
        rig.command(b"\x04\x00", b"\x02\x00")
        rig.offer(2000, queue=2)
        rig.command(b"\x04\x00", b"\x01\x00")
        fds = [watch.fd for watch in rig.loop.watches]
        assert rig.tap.end.ports[1].fd not in fds
        rig.send(HEADER, frame(60), queue=3)
        assert rig.seen(1) == []
        rig.command(b"\x04\x00", b"\x02\x00")
        assert rig.seen(1) == [HEADER + frame(60)]
        rig.arrive(frame(70), wire=1)
        assert rig.received(2) == [bytes(10) + b"\x01\x00" + frame(70)]

    @pytest.mark.parametrize("reached", [0, 1], ids=["at once", "half way"])
    def test_pairs_go_on_when_the_host_refuses_to_take_them_away(self, make, monkeypatch, reached):
        rig = make(queues=3)
        rig.command(b"\x04\x00", b"\x03\x00")
        refuse = refusing(OSError, EINVAL)
        left = [None] * reached + [refuse]

        def ioctl(fd, request, argument):
            step = left.pop(0) if left else None
            return step() if step else rig.tap.ioctl(fd, request, argument)

        monkeypatch.setattr(rig.tap.end, "_ioctl", ioctl)
        assert rig.command(b"\x04\x00", b"\x01\x00") == ERR
        assert sum(rig.tap.queue_changes) == 0
        rig.send(HEADER, frame(60), queue=3)
        assert rig.seen(1) == [HEADER + frame(60)]
        rig.offer(2000, queue=4)
        rig.arrive(frame(70), wire=2)
        assert rig.received(4) == [bytes(10) + b"\x01\x00" + frame(70)]

    @pytest.mark.parametrize("count", [0, 3, -1])
    def test_saved_number_of_pairs_that_cannot_be_is_refused(self, make, count):
        rig = make(queues=2)
        state = rig.device.state() | {"_active_pairs": count}
        with pytest.raises(ConfigError, match="saved state of net is damaged"):
            rig.device.load_state(state)
        assert rig.device._active_pairs == 1

    def test_driver_without_the_feature_has_its_control_queue_after_the_first_pair(self, make):
        rig = make(queues=2, without=[netbits.MQ])
        assert rig.command(b"\x04\x00", b"\x01\x00", queue=2) == ERR
        assert rig.command(b"\x01\x01", MAC, queue=2) == OK

    def test_reset_returns_to_one_pair(self, make):
        rig = make(queues=2)
        rig.command(b"\x04\x00", b"\x02\x00")
        rig.reset()
        assert rig.device._active_pairs == 1


class TestLink:
    def test_cable_pulled_out_tells_the_driver(self, make):
        rig = make()
        rig.device.set_link(False)
        assert rig.device.read(6, 2) == 0
        assert rig.interrupts.config == 1
        assert rig.core.generation == 1

    def test_same_state_again_tells_nothing(self, make):
        rig = make()
        rig.device.set_link(True)
        assert rig.interrupts.config == 0

    def test_frames_are_dropped_while_the_cable_is_out(self, make):
        rig = make()
        rig.offer(2000)
        rig.device.set_link(False)
        rig.arrive(frame(60))
        rig.send(HEADER, frame(60))
        assert rig.seen() == []
        assert rig.received() == []
        assert (rig.counters.rx_dropped, rig.counters.tx_dropped) == (1, 1)
        rig.device.set_link(True)
        rig.arrive(frame(61))
        rig.send(HEADER, frame(62))
        assert rig.received() == [bytes(10) + b"\x01\x00" + frame(61)]
        assert rig.seen() == [HEADER + frame(62)]

    def test_cable_of_a_closed_card_moves_nothing(self, make):
        rig = make()
        rig.core.close()
        before = rig.interrupts.config
        rig.device.set_link(False)
        assert rig.interrupts.config == before

    def test_card_can_begin_without_a_cable(self, make):
        rig = make(link=False)
        assert rig.device.read(6, 2) == 0
        rig.reset()
        assert rig.device.read(6, 2) == 0

    def test_lost_end_is_a_cable_pulled_out_for_good(self, make, tmp_path):
        rig = make()
        rig.offer(2000)
        rig.replace_port(tmp_path)
        rig.loop.run()
        assert rig.device.read(6, 2) == 0
        assert rig.counters.lost == os.strerror(EISDIR)
        assert rig.interrupts.config == 1
        rig.send(HEADER, frame(60))
        assert rig.counters.tx_dropped == 1
        rig.reset()
        rig.start()
        rig.device.set_link(True)
        assert rig.device.read(6, 2) == 0

    def test_lost_connection_while_sending_gives_every_frame_back(self, make):
        rig = make()
        rig.wire.close()
        for _ in range(3):
            rig.drivers[TX].add_chain([HEADER, frame(60)])
        rig.kick(TX)
        assert len(rig.drivers[TX].collect()) == 3
        assert rig.counters.tx_dropped == 2
        assert rig.device.read(6, 2) == 0


class TestResets:
    def test_device_reset_forgets_a_frame_in_part_and_starts_afresh(self, make):
        rig = make()
        rig.offer(100)
        rig.arrive(frame(1000))
        rig.reset()
        assert rig.loop.watches == []
        rig.drivers[RX].collect()

    def test_queue_reset_forgets_its_buffers(self, make):
        rig = make()
        rig.offer(100)
        rig.arrive(frame(1000))
        with rig.core.lock:
            rig.core.queue_select = RX
            after = rig.core.disable_queue()
        after()
        rig.loop.run()
        rig.arrive(frame(60))
        rig.send(HEADER, frame(61))
        assert rig.seen() == [HEADER + frame(61)]
        assert not rig.broken

    def test_broken_ring_stops_the_device_without_spinning(self, make):
        rig = make()
        rig.drivers[RX].add_raw([(0xDEAD_0000_0000, 4096, 2)])
        rig.kick(RX)
        assert rig.broken
        rig.arrive(frame(60))
        assert rig.loop.watches == []

    def test_host_that_refuses_offloads_at_start_breaks_the_session_only(self, make):
        rig = make(started=False)
        rig.tap.refuse[0x4004_54D0] = EINVAL
        rig.start()
        assert "offloads" in rig.broken

    def test_close_gives_every_descriptor_back(self, make):
        rig = make(queues=2)
        ports = list(rig.tap.end.ports)
        rig.core.close()
        rig.core.close()
        for port in ports:
            with pytest.raises(OSError, match="Bad file descriptor"):
                port.receive([], 0)

    def test_queue_sizes_are_two_a_pair_and_one(self, make):
        sizes = make(started=False, queues=3).device.queue_sizes
        assert sizes == (net.QUEUE_SIZE,) * 6 + (net.CONTROL_QUEUE_SIZE,)
