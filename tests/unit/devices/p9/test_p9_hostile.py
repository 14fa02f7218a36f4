# SPDX-License-Identifier: Apache-2.0
"""The 9P server under frames that no client sends, and under many threads."""

import errno
import os
import struct
import threading
import tracemalloc

import pytest
from fakes.p9client import HEADER, REQUESTS, P9Client, P9Error, frame, serve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvmm.devices.p9.beneath import open_root
from pyvmm.devices.p9.fids import Budget
from pyvmm.devices.p9.server import Server


def answer_of(server, request, room=4096):
    answer = bytearray(room)
    written = server.handle([memoryview(request)], [memoryview(answer)])
    return bytes(answer[:written])


def error_of(answer):
    size, kind, _, code = struct.unpack("<IBHI", answer)
    assert (size, kind) == (11, 7)
    return code


@pytest.fixture
def server(make_server):
    """A server that a client has attached to as fid 101."""
    server = make_server()
    P9Client(serve(server)).start()
    return server


@pytest.mark.parametrize("length", range(7))
def test_frame_shorter_than_a_header_gets_no_answer(server, length):
    assert answer_of(server, frame("clunk", 101)[:length]) == b""
    assert server.odd == 1


@pytest.mark.parametrize("room", range(11))
def test_buffer_too_small_for_an_error_gets_no_answer_and_nothing_is_done(server, room):
    assert answer_of(server, frame("clunk", 101), room) == b""
    assert len(server.fids) == 1


def test_buffer_too_small_for_the_answer_gets_an_error(server):
    assert error_of(answer_of(server, frame("getattr", 101, 0), 50)) == errno.EMSGSIZE


@pytest.mark.parametrize("name", REQUESTS)
def test_frame_cut_short_anywhere_is_refused(server, name):
    values = [{"s": b"name", "*": [b"a", b"b"], "d": b""}.get(letter, 101) for letter in REQUESTS[name][1]]
    whole = frame(name, *values)
    for length in range(7, len(whole)):
        cut = HEADER.pack(length, *HEADER.unpack_from(whole)[1:]) + whole[7:length]
        assert error_of(answer_of(server, cut)) in (errno.EPROTO, errno.EOPNOTSUPP)
        assert error_of(answer_of(server, whole[:length])) in (errno.EPROTO, errno.EOPNOTSUPP)


@pytest.mark.parametrize("size", [0, 7, 1 << 15, (1 << 15) + 1, (1 << 32) - 1])
def test_frame_that_lies_about_its_size_is_refused(server, size):
    lying = struct.pack("<I", size) + frame("clunk", 101)[4:]
    assert error_of(answer_of(server, lying)) == errno.EPROTO
    assert len(server.fids) == 1


@pytest.mark.parametrize("kind", sorted({*range(256)} - {number for number, _ in REQUESTS.values()}))
def test_unknown_type_is_refused(server, kind):
    assert error_of(answer_of(server, HEADER.pack(11, kind, 1) + bytes(4))) == errno.EOPNOTSUPP


def test_walk_of_more_than_sixteen_names_is_refused(server):
    assert error_of(answer_of(server, frame("walk", 101, 102, [b"a"] * 17))) == errno.EPROTO


def test_counts_of_four_gigabytes_are_bounded_by_the_buffer(server, share):
    (share / "a").write_bytes(bytes(100_000))
    client = P9Client(serve(server))
    fid, directory = client.open(101, b"a"), client.open(101)
    most = (1 << 32) - 1
    assert len(answer_of(server, frame("read", fid, 0, most))) == 4096
    assert len(answer_of(server, frame("readdir", directory, 0, most))) <= 4096
    assert error_of(answer_of(server, frame("write", fid, 0, most, b"x"))) == errno.EINVAL
    assert error_of(answer_of(server, frame("write", fid, 0, 2, b"x"))) == errno.EPROTO


def test_write_larger_than_a_frame_is_refused(server, share):
    fid = P9Client(serve(server)).create(101, b"a")
    most = server.msize - 23
    assert error_of(answer_of(server, frame("write", fid, 0, most + 1, bytes(most + 1)))) == errno.EINVAL
    assert (share / "a").stat().st_size == 0
    assert answer_of(server, frame("write", fid, 0, most, bytes(most)))[4] == 119
    assert (share / "a").stat().st_size == most


def test_extended_attribute_is_not_copied_beyond_what_one_may_have(make_server, share):
    (share / "a").write_bytes(b"")
    server = make_server()
    client = P9Client(serve(server))
    fid = client.walk(client.start(msize=1 << 20), b"a")
    client.do("xattrcreate", fid, b"user.a", 65536, 0)
    size = (1 << 20) - 23
    request = [memoryview(frame("write", fid, 0, size, bytes(size)))]
    answer = bytearray(100)
    tracemalloc.start()
    written = server.handle(request, [memoryview(answer)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error_of(bytes(answer[:written])) == errno.ENOSPC
    assert peak < 200_000


def test_buffers_in_a_thousand_pieces_are_served(server, share):
    data = os.urandom(3000)
    (share / "a").write_bytes(data)
    fid = P9Client(serve(server)).open(101, b"a")
    answer = bytearray(3011)
    pieces = [memoryview(answer)[at : at + 1] for at in range(len(answer))]
    request = frame("read", fid, 0, 3000)
    written = server.handle([memoryview(request)[at : at + 1] for at in range(len(request))], pieces)
    count = struct.unpack_from("<I", answer, 7)[0]
    assert written == 11 + count
    assert 0 < count < 3000  # more pieces than one system call takes: a short read
    assert answer[11:written] == data[:count]


def test_requests_after_the_session_ended_leave_nothing_open(server, share):
    server.close()
    assert error_of(answer_of(server, frame("attach", 5, 0xFFFF_FFFF, b"", b"", 0))) == errno.ECONNABORTED


def test_clunk_while_a_request_uses_the_fid_closes_it_afterwards(server, share):
    (share / "a").write_bytes(b"data")
    client = P9Client(serve(server))
    number = client.open(101, b"a")
    with server.fids.use(number) as fid:
        client.do("clunk", number)
        assert os.pread(fid.fd, 4, 0) == b"data"
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fid.fd)


def test_many_threads_on_the_same_fids_break_nothing(make_server, share):
    """Everybody opens, reads, walks and clunks the same few numbers."""
    for number in range(4):
        (share / f"f{number}").write_bytes(b"%d" % number * 1000)
    server = make_server(limit=50)
    client = P9Client(serve(server))
    client.start()
    failures = []

    def work(seed):
        own = P9Client(serve(server))
        try:
            for step in range(400):
                number = 200 + (seed * 7 + step) % 5
                for request in (
                    ("walk", 101, number, [b"f%d" % (step % 4)]),
                    ("lopen", number, 2),
                    ("read", number, 0, 1000),
                    ("write", number, 0, 1, b"z"),
                    ("lock", number, 1, 0, 0, 0, seed, b"x"),
                    ("walk", 101, number, [b"f0"]),
                    ("xattrcreate", number, b"user.a", 4, 0),
                    ("clunk", number),
                ):
                    try:
                        own.do(*request)
                    except P9Error as error:
                        assert error.code in (
                            errno.EBADF, errno.EMFILE, errno.ENOLCK, errno.EINVAL, errno.ENOSPC
                        ), error  # fmt: skip
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


words = st.sampled_from([b"a", b"d", b"l", b"..", b".", b"", b"/", b"secret", b"\xff", b"a/b"]) | st.binary(
    max_size=6
)
numbers = st.sampled_from([0, 1, 2, 7, 101, 102, 103, 0x200, 0o1000, 4096, 0xFFFF_FFFF]) | st.integers(
    0, 1 << 32
)
LIMITS = {"B": 8, "H": 16, "I": 32, "Q": 64}


@st.composite
def frames(draw):
    """Frames that are nearly right."""
    name = draw(st.sampled_from(sorted(REQUESTS)))
    values = []
    for letter in REQUESTS[name][1]:
        if letter in "sd":
            values.append(draw(words))
        elif letter == "*":
            values.append(draw(st.lists(words, max_size=3)))
        else:
            values.append(draw(numbers) & (1 << LIMITS[letter]) - 1)
    return frame(name, *values)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.lists(frames() | st.binary(max_size=64), max_size=12), room=st.integers(0, 300))
def test_random_frames_never_raise_and_never_leave(share, requests, room):
    os.makedirs(share / "d", exist_ok=True)
    if not os.path.lexists(share / "l"):
        (share / "l").symlink_to("../secret")
    before = (share.parent / "secret").lstat()
    server = Server(open_root(str(share), "--9p"), writable=True, budget=Budget(20))
    try:
        P9Client(serve(server)).start()
        for request in requests:
            answer = answer_of(server, request, room)
            assert not answer or struct.unpack_from("<I", answer)[0] == len(answer) <= room
    finally:
        server.close()
        os.close(server.root)
    assert sorted(os.listdir(share.parent)) == ["secret", "share"]
    assert (share.parent / "secret").lstat() == before
