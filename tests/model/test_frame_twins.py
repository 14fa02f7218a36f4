# SPDX-License-Identifier: Apache-2.0
"""The same for frames that are moved in C and those that Pair moves: nothing but time may tell them apart.

That is, while the driver offers only buffers that frames can be received into: Pair looks further ahead in
the queue, and so finds out earlier.
"""

from __future__ import annotations

from fakes.native import needs_native
from fakes.nettwins import ELSEWHERE, RAM_SIZE, RX, TX, Setup, Step, endured, played
from fakes.virtio import RAM
from hypothesis import given, settings
from hypothesis import strategies as st

queues = st.sampled_from([RX, TX])
setups = st.builds(Setup, st.booleans(), st.booleans(), st.booleans(), st.sampled_from([4, 16, 64]))
pieces = st.lists(st.sampled_from([1, 2, 9, 12, 26, 100, 1500, 5000]), min_size=1, max_size=4).map(tuple)
whole = st.sampled_from([(1526,), (12, 4096), (70000,)])
offers = st.builds(
    Step,
    st.just("offer"),
    st.tuples(
        st.one_of(pieces, whole), st.booleans(), st.sampled_from([False, False, True]), st.integers(1, 16)
    ),
)
frames = st.lists(st.sampled_from([0, 11, 25, 26, 72, 1500, 5000, 65000]), min_size=1, max_size=4).map(tuple)
arrivals = st.builds(Step, st.just("arrive"), st.tuples(frames))
frame_pieces = st.one_of(
    st.just((12, 32000)), st.lists(st.sampled_from([0, 1, 12, 13, 60, 1500, 50000]), max_size=5).map(tuple)
)
sent = st.builds(
    Step, st.just("queue"), st.tuples(frame_pieces, st.sampled_from([(), (), (8,)]), st.booleans())
)
sent_elsewhere = st.builds(Step, st.just("queue_elsewhere"), st.tuples(st.sampled_from([10, 60, 1500])))
kicks = st.builds(Step, st.just("kick"), st.tuples(queues))
looks = st.builds(
    Step,
    st.sampled_from(["wants_kick", "enable_interrupts", "disable_interrupts", "collect", "collect"]),
    st.tuples(queues),
)
links = st.builds(Step, st.just("link"), st.tuples(st.booleans()))
takes = st.just(Step("take"))
honest = st.one_of(
    *(offers, offers, arrivals, arrivals, sent, sent, sent, sent_elsewhere),
    *(kicks, kicks, kicks, looks, looks, takes, links),
)

addresses = st.one_of(
    st.sampled_from([0, RAM - 1, RAM, RAM + RAM_SIZE - 1, ELSEWHERE, 2**64 - 16]),
    st.integers(RAM, RAM + 0x4_1000),
)
descriptors = st.tuples(
    addresses,
    st.one_of(st.integers(0, 100), st.sampled_from([16, 4096, 2**31, 2**32 - 1])),
    st.integers(0, 7),
)
raw = st.builds(Step, st.just("raw"), st.tuples(queues, st.lists(descriptors, min_size=1, max_size=3)))
pokes = st.builds(
    Step, st.just("poke"), st.tuples(queues, st.integers(0, 2), st.integers(0, 150), st.integers(0, 0xFFFF))
)


@needs_native
@settings(max_examples=300, deadline=None)
@given(setup=setups, steps=st.lists(honest, min_size=10, max_size=40))
def test_frames_in_c_are_moved_as_by_their_twin(setup, steps):
    assert played(setup, steps, in_c=True) == played(setup, steps, in_c=False)


@needs_native
@settings(max_examples=300, deadline=None)
@given(setup=setups, steps=st.lists(st.one_of(honest, raw, raw, pokes), max_size=40))
def test_hostile_driver_harms_only_its_session(setup, steps):
    assert endured(setup, steps)
