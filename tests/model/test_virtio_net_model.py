# SPDX-License-Identifier: Apache-2.0
"""virtio-net against a list of frames: whatever the sizes, every byte arrives in order."""

import socket
import struct
from contextlib import closing

from fakes.tap import FakeTap
from fakes.virtio import Rig
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.devices.net.passt import Passt, PasstPort
from pyvmm.devices.virtio.net import Net

MAC = bytes.fromhex("525400123456")
RX, TX, CONTROL = 0, 1, 2
HEADER = 12


def frame(size, number):
    return bytes((number + i * 11) & 0xFF for i in range(size))


class Tap:
    """The host's end as a tap: a header before each frame."""

    def __init__(self):
        self.fake = FakeTap()
        self.end = self.fake.end

    def send(self, one):
        self.fake.far[0].send(bytes(HEADER) + one)

    def close(self):
        self.fake.close()


class Stream:
    """The host's end as passt: a length before each frame, cut anywhere."""

    def __init__(self):
        near, self.far = socket.socketpair()
        self.end = Passt(PasstPort(near))

    def send(self, one):
        self.far.sendall(struct.pack("!I", len(one)) + one)

    def close(self):
        self.far.close()


def packets(completions, merged):
    """What the driver makes of its buffers: the headers say how many belong together."""
    rest = list(completions)
    while rest:
        (count,) = struct.unpack_from("<H", (b"".join(done.data for done in rest[:3]) + bytes(12))[10:12])
        assert count == 1 or merged
        if count > len(rest):
            raise AssertionError(f"{count} buffers are said to be there, {len(rest)} are")
        yield b"".join(done.data for done in rest[:count])[HEADER:]
        del rest[:count]


# 32 buffers of the smallest size hold the largest frame: with less, it would wait for ever.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("frame"), st.sampled_from([14, 60, 61, 499, 500, 501, 1500, 4000])),
        st.tuples(st.just("buffers"), st.lists(st.sampled_from([130, 512, 1526, 5000]), max_size=6)),
        st.tuples(st.just("collect"), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, packed=st.booleans(), host=st.sampled_from([Tap, Stream]))
def test_every_frame_arrives_once_whole_and_in_order(steps, packed, host):
    sent, completions = [], []
    wire = host()
    with Rig(Net(wire.end, MAC), packed=packed, size=32) as rig, closing(wire):
        rig.start()
        driver = rig.drivers[RX]
        for step, value in steps:
            if step == "frame":
                sent.append(frame(value, len(sent)))
                wire.send(sent[-1])
                rig.loop.run()
            elif step == "buffers":
                for size in value[: driver.free_slots]:
                    driver.add_chain([], [size])
                rig.kick(RX)
            else:
                completions += driver.collect()
        completions += driver.collect()
        arrived = list(packets(completions, merged=True))
        assert arrived == sent[: len(arrived)]
        assert rig.device.counters.rx_dropped == 0
        for _ in range(10 * len(sent)):  # nothing that has room now may be missing
            if driver.free_slots:
                driver.add_chain([], [4100])
            rig.kick(RX)
            completions += driver.collect()
            arrived = list(packets(completions, merged=True))
        assert arrived == sent


PIECES = st.lists(st.binary(max_size=80), max_size=6)


@settings(max_examples=150, deadline=None)
@given(
    chains=st.lists(
        st.tuples(
            st.sampled_from([RX, TX, CONTROL]),
            PIECES,
            st.lists(st.integers(0, 200), max_size=4),
            st.booleans(),
        ),
        max_size=30,
    ),
    packed=st.booleans(),
    host=st.sampled_from([Tap, Stream]),
)
def test_any_chain_in_any_queue_does_no_harm(chains, packed, host):
    wire = host()
    with Rig(Net(wire.end, MAC), packed=packed, size=32) as rig, closing(wire):
        rig.start()
        for queue, readable, writable, arrives in chains:
            if (readable or writable) and rig.drivers[queue].free_slots >= len(readable) + len(writable):
                rig.drivers[queue].add_chain(readable, writable)
            if arrives:
                wire.send(frame(60, 0))
            rig.kick(queue)
            rig.drivers[queue].collect()
        assert not rig.broken
        assert rig.drivers[TX].in_flight == []
        assert rig.drivers[CONTROL].in_flight == []
