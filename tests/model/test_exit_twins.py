# SPDX-License-Identifier: Apache-2.0
"""The same exits for the run loop in C and for its twin in Python: nothing but time may tell them apart.

``tests/fuzz`` does the same with a fuzzer that sees which ways through the C it has not taken yet.
"""

from __future__ import annotations

import errno

from fakes.native import needs_native
from fakes.twins import FREE, HUGE, PROBE, SAMPLE, STATUS, TOP, UART, Access, Filled, Happening, played
from hypothesis import given, settings
from hypothesis import strategies as st

near = st.sampled_from([UART, SAMPLE, SAMPLE, SAMPLE, STATUS, STATUS, PROBE, PROBE, FREE, TOP, HUGE, 0])
offsets = st.one_of(
    st.sampled_from([0x00, 0x03, 0x05, 0x07, 0x08, 0x10, 0x14, 0x20, 0x60, 0x64]), st.integers(-9, 0x70)
)
addresses = st.one_of(
    st.builds(lambda base, offset: (base + offset) % 2**64, near, offsets), st.integers(0, 2**64 - 1)
)
real_lengths = st.sampled_from([1, 2, 4, 8])
lengths = st.one_of(
    real_lengths, real_lengths, real_lengths, st.sampled_from([0, 3, 9, 64, 2**31, 2**32 - 1])
)
data = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 0xFF, 0xDEAD_BEEF, 2**64 - 1]))
accesses = st.builds(Access, addresses, data, lengths, st.sampled_from([0, 1, 0xFF]))
sound = st.builds(Access, addresses, data, real_lengths, st.sampled_from([0, 1]))
bases = st.sampled_from([PROBE, FREE, UART - 0xFFC, 2**64 - 0x1000, 0])
bytes_ = st.integers(0, 0xFF)
happenings = st.one_of(
    st.builds(Happening, st.sampled_from(["move", "race"]), bases),
    st.builds(Happening, st.sampled_from(["know", "scribble"]), bytes_),
    st.builds(Happening, st.just("interrupt"), st.integers(0, 2**32 - 1)),
    st.builds(Happening, st.just("answer"), st.integers(-(2**70), 2**70)),
    st.builds(
        Happening,
        st.sampled_from(
            [
                "store",
                "forget",
                "trace",
                "no_trace",
                "post",
                "again",
                "csr",
                "store",
                "unmap",
                "break",
            ]
        ),
    ),
)
filled = st.builds(Filled, st.integers(0, 0x30), st.binary(max_size=24))
endings = st.builds(Happening, st.just("fail"), st.sampled_from([errno.EIO, errno.EFAULT, errno.ENOMEM]))
guests = st.builds(
    lambda steps, end: [*steps, *end],
    st.lists(st.one_of(sound, sound, sound, accesses, happenings), min_size=1, max_size=60),
    st.lists(st.one_of(endings, filled), max_size=1),
)


@needs_native
@settings(deadline=None, max_examples=400)
@given(guests)
def test_twins_agree_on_everything(steps):
    assert played(steps, in_c=True) == played(steps, in_c=False)
