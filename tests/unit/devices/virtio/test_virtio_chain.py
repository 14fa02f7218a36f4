# SPDX-License-Identifier: Apache-2.0
import pytest

from pyvmm.devices.virtio.chain import Chain, gather, scatter, split, total

TEXT = b"abcdefghij"


def views(*sizes, of=None):
    """TEXT, or another buffer, cut into views of these sizes."""
    whole, at, cut = memoryview(of if of is not None else TEXT), 0, []
    for size in sizes:
        cut.append(whole[at : at + size])
        at += size
    return cut


CUTS = [(10,), (3, 7), (1, 1, 8), (0, 5, 0, 5)]


@pytest.mark.parametrize("cut", CUTS)
def test_total_and_gather_take_all_views_together(cut):
    assert total(views(*cut)) == 10
    assert gather(views(*cut)) == TEXT


def test_no_views_are_no_bytes():
    assert total([]) == 0
    assert gather([]) == gather([], 5) == b""
    assert scatter([], b"x") == 0
    assert split([], 3) == ([], [])


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("limit", [0, 1, 3, 4, 10, 11])
def test_gather_with_a_limit_stops_there(cut, limit):
    assert gather(views(*cut), limit) == TEXT[:limit]


def test_gathered_bytes_do_not_follow_the_guest():
    memory = bytearray(b"before")
    copy = gather(views(3, 3, of=memory))
    memory[:] = b"after!"
    assert copy == b"before"


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("size", [0, 1, 5, 10, 12])
def test_scatter_copies_what_fits_and_touches_nothing_else(cut, size):
    memory = bytearray(b"." * 10)
    data = bytes(range(65, 65 + size))
    count = min(size, 10)
    assert scatter(views(*cut, of=memory), data) == count
    assert memory == data[:count] + b"." * (10 - count)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("at", [0, 1, 3, 5, 10, 99])
def test_split_cuts_at_the_byte(cut, at):
    first, rest = split(views(*cut), at)
    assert (gather(first), gather(rest)) == (TEXT[:at], TEXT[at:])


def test_closed_chain_holds_no_views():
    chain = Chain(0, views(3), views(7), 1)
    chain.close()
    assert not chain.readable
    assert not chain.writable
