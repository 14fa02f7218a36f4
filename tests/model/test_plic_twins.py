# SPDX-License-Identifier: Apache-2.0
"""The same for the PLIC's core in C and for its twin: nothing but time may tell them apart.

``tests/fuzz`` does the same with a fuzzer that sees which ways through the C it has not taken yet.
"""

from __future__ import annotations

from fakes.native import needs_native
from fakes.plictwins import ENABLE, MOST_HARTS, NUMBERS, STRIDE, THRESHOLD, Make, check
from hypothesis import given, settings
from hypothesis import strategies as st

numbers = st.sampled_from(NUMBERS)
indices = st.integers(0, len(NUMBERS) - 1)  # of wires, modulo what there are
any_numbers = st.one_of(
    numbers, st.sampled_from([0, 3, 41, 1024, 2**31, 2**32 - 1]), st.integers(0, 2**32 - 1)
)
contexts = st.integers(0, MOST_HARTS)  # the last is never there
values = st.one_of(st.integers(0, 9), st.just(2**32 - 1), st.integers(0, 2**32 - 1))
claims = st.builds(
    lambda context, lane: STRIDE * context + lane, contexts, st.sampled_from([0, 0, 0, 0, 1, 4, 8])
)
lengths = st.sampled_from([4, 4, 4, 4, 1, 2, 8])
steps = st.one_of(
    st.tuples(st.just("drive"), indices, st.booleans()),
    st.tuples(st.just("drive"), indices, st.booleans()),
    st.tuples(st.just("pulse"), indices),
    st.tuples(st.just("write"), st.builds(lambda number: 4 * number, numbers), values),
    st.tuples(st.just("write"), st.builds(lambda context: THRESHOLD + STRIDE * context, contexts), values),
    st.tuples(
        st.just("write"),
        st.builds(
            lambda context, word: ENABLE + 0x80 * context + 4 * word,
            contexts,
            st.sampled_from([0, 0, 1, 2, 31]),
        ),
        st.one_of(st.just(0), values),
    ),
    st.tuples(st.just("claim"), st.builds(lambda context: STRIDE * context, contexts), st.just(4)),
    st.tuples(st.just("claim"), claims, lengths),
    st.tuples(st.just("complete"), claims, lengths, any_numbers),
    st.tuples(st.just("complete_claimed"), contexts),
    st.tuples(st.just("complete_claimed"), contexts),
    st.tuples(st.sampled_from(["reset", "restore"])),
)
makes = st.builds(
    Make,
    st.sampled_from([1, 31, 32, 40, 63, 64, 65, 127, 128, 1023]),
    st.integers(1, MOST_HARTS),
    st.sets(numbers),
    st.lists(st.integers(0, 7), min_size=len(NUMBERS), max_size=len(NUMBERS)),
)


@needs_native
@settings(max_examples=300, deadline=None)
@given(make=makes, steps=st.lists(steps, min_size=20, max_size=80))
def test_core_in_c_does_what_its_twin_does(make, steps):
    check(make, steps)
