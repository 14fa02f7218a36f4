# SPDX-License-Identifier: Apache-2.0
"""Whatever a guest sends through its agent's port, the host hears GuestError at worst, and holds little."""

import socket
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.guest import protocol
from pyvmm.guest.client import Guest
from pyvmm.guest.process import STDERR, STDOUT, WINDOW
from pyvmm.guest.protocol import GuestError, GuestProtocolError, Parser, frame

NONCE = bytes(range(16))
READY = frame(17, payload=protocol.READY_PAYLOAD.pack(protocol.MAGIC, NONCE, 1, 16, 65536, 65536))
MOST = protocol.MAX_PAYLOAD + protocol.HEADER.size

kinds = st.one_of(st.sampled_from([17, 18, 18, 18, 19, 20]), st.integers(0, 255))
sessions = st.one_of(st.integers(0, 3), st.integers(0, 65535))
numbers = st.one_of(st.integers(0, 20), st.integers(0, 2**32 - 1))
payloads = st.one_of(
    st.binary(max_size=64),
    st.integers(0, 20000).map(bytes),
    numbers.map(lambda number: struct.pack("<I", number)),
    st.tuples(st.integers(0, 255), st.integers(0, 255), numbers).map(
        lambda end: protocol.EXIT_PAYLOAD.pack(*end)
    ),
)
frames = st.builds(frame, kinds, sessions, payloads, st.integers(0, 4))
streams = st.lists(st.one_of(frames, st.binary(max_size=40)), max_size=30).map(b"".join)


@given(data=streams, begun=st.booleans(), cuts=st.lists(st.integers(1, 70000), max_size=8))
def test_frames_are_whole_and_small_or_refused(data, begun, cuts):
    parser = Parser(NONCE)
    data = (READY if begun else b"") + data
    try:
        for cut in [*cuts, len(data)]:
            piece, data = data[:cut], data[cut:]
            for kind, stream, _, payload in parser.feed(piece):
                assert kind in (17, 18, 19, 20)
                assert len(payload) <= protocol.MAX_PAYLOAD
                assert kind != 18 or stream in (1, 2)
            assert len(parser._buffer) <= MOST
    except GuestProtocolError:
        pass


@settings(max_examples=60, deadline=None)
@given(data=streams)
def test_a_client_gets_an_end_or_a_guest_error_and_holds_a_window(data):
    ours, theirs = socket.socketpair()
    with theirs, Guest(ours) as guest:
        channel = guest._channel
        theirs.recv(len(protocol.PREAMBLE) + 8, socket.MSG_WAITALL)
        hello = theirs.recv(protocol.HELLO_PAYLOAD.size, socket.MSG_WAITALL)
        theirs.sendall(READY.replace(NONCE, hello[8:24]))
        guest.wait_ready(30)
        processes = [guest.start("x") for _ in range(3)]
        try:
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has heard enough
        for process in processes:
            try:
                assert 0 <= process.wait(30) <= 255
            except GuestError:
                pass
        with channel.changed:
            for process in processes:
                for output in (STDOUT, STDERR):
                    assert len(process.take(output)) <= WINDOW
                    process.ended(output)
            assert len(channel._processes) <= 3
            assert len(channel._out) < 1 << 20
