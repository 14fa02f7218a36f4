# SPDX-License-Identifier: Apache-2.0
"""The same for virtqueues in C and for their twins in Python: nothing but time may tell them apart.

``tests/fuzz`` does the same with a fuzzer that sees which ways through the C it has not taken yet.
"""

from __future__ import annotations

from fakes.native import needs_native
from fakes.queuetwins import BASE, PAGE, ROM, SEAM, SIZE, Queue, Step, played
from hypothesis import given, settings
from hypothesis import strategies as st

sizes = st.lists(st.integers(0, 40), max_size=3).map(tuple)
honest = st.builds(Step, st.just("add"), st.tuples(sizes, sizes, st.booleans()))
addresses = st.one_of(
    st.sampled_from([BASE, BASE - 1, SEAM - 8, SEAM, SEAM + PAGE - 1, ROM, 0, 2**64 - 1]),
    st.integers(BASE + 0x2000, SEAM),
)
lengths = st.one_of(
    st.integers(0, 64).map(lambda count: 16 * count),
    st.sampled_from([1, 17, SIZE, 16 * 1024, 16 * 1025, 2**31, 2**32 - 1]),
)
flags = st.builds(
    lambda kind, turn: kind | turn, st.integers(0, 7), st.sampled_from([0, 0x80, 0x8000, 0x8080])
)
descriptors = st.builds(
    Step, st.just("descriptor"), st.tuples(st.integers(0, 7), addresses, lengths, flags, st.integers(0, 9))
)
pokes = st.builds(
    Step, st.just("poke"), st.tuples(st.integers(0, 2), st.integers(0, 150), st.integers(0, 0xFFFF))
)
offers = st.builds(Step, st.just("offer"), st.tuples(st.one_of(st.integers(0, 9), st.just(0x8000))))
pops = st.just(Step("pop"))
simple = st.sampled_from([Step(name) for name in ("should_interrupt", "pause_notify", "resume_notify")])
completions = st.builds(
    Step,
    st.sampled_from(["complete", "complete_all"]),
    st.tuples(st.integers(0, 9), st.sampled_from([0, 1, 2**31, 2**32 - 10])),
)
steps = st.one_of(honest, honest, descriptors, pokes, offers, offers, pops, pops, pops, simple, completions)
queues = st.builds(
    Queue, st.booleans(), st.sampled_from([1, 2, 4, 8]), st.booleans(), st.booleans(), st.integers(0, 0xFFFF)
)


@needs_native
@settings(max_examples=1000, deadline=None)
@given(queue=queues, steps=st.lists(steps, max_size=40))
def test_queue_in_c_does_what_its_twin_does(queue, steps):
    assert played(queue, steps, in_c=True) == played(queue, steps, in_c=False)
