# SPDX-License-Identifier: Apache-2.0
"""User-mode networking: passt's protocol on a socket pair, starting it, publishing ports."""

import os
import select
import socket
import struct
import sys
import threading

import pytest
from fakes.virtio import Rig, make_services

from pyvmm.devices.net import bits as netbits
from pyvmm.devices.net import passt as passt_module
from pyvmm.devices.net.passt import Passt, PasstPort, find_program, publish_arguments, start_passt
from pyvmm.devices.settings import parse
from pyvmm.devices.virtio.net import Net
from pyvmm.errors import ConfigError

MAC = bytes.fromhex("525400123456")
HEADER = bytes(12)
ONE_BUFFER = bytes(10) + b"\x01\x00"
RX, TX = 0, 1


def frame(size, start=0):
    return bytes((start + i * 5) & 0xFF for i in range(size))


def framed(*frames):
    return b"".join(struct.pack("!I", len(one)) + one for one in frames)


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def rig(request):
    """A card on a socket; ``rig.passt`` is the other end."""
    near, far = socket.socketpair()
    far.setblocking(False)
    with Rig(Net(Passt(PasstPort(near)), MAC), packed=request.param, size=64) as rig:
        rig.passt = far
        yield rig
        far.close()  # or hanging up would wait for passt to go


def offer(rig, *sizes):
    for size in sizes:
        rig.drivers[RX].add_chain([], [size])
    rig.kick(RX)


def received(rig):
    return [done.data for done in rig.drivers[RX].collect()]


def drain(sock):
    data = b""
    while select.select([sock], [], [], 0)[0]:
        data += sock.recv(1 << 20)
    return data


class TestProtocol:
    def test_frame_is_sent_behind_its_length_and_without_a_header(self, rig):
        rig.start()
        rig.drivers[TX].add_chain([HEADER[:5], HEADER[5:] + frame(20), frame(40)])
        rig.kick(TX)
        assert drain(rig.passt) == framed(frame(20) + frame(40))

    def test_frame_arrives_behind_a_header_that_vouches_for_it(self, rig):
        rig.start()
        offer(rig, 2000)
        rig.passt.send(framed(frame(60)))
        rig.loop.run()
        assert received(rig) == [b"\x02" + ONE_BUFFER[1:] + frame(60)]

    def test_header_says_nothing_to_a_driver_that_does_not_know(self, rig):
        rig.start(0)
        offer(rig, 2000)
        rig.passt.send(framed(frame(60)))
        rig.loop.run()
        assert received(rig) == [ONE_BUFFER + frame(60)]

    def test_several_frames_at_once_are_several_frames(self, rig):
        rig.start(0)
        offer(rig, 500, 500, 500)
        rig.passt.send(framed(frame(60), frame(14), frame(99)))
        rig.loop.run()
        assert received(rig) == [ONE_BUFFER + one for one in (frame(60), frame(14), frame(99))]

    def test_frame_in_single_bytes_arrives_whole(self, rig):
        rig.start(0)
        offer(rig, 500)
        for byte in framed(frame(30)):
            assert received(rig) == []
            rig.passt.send(bytes([byte]))
            rig.loop.run()
        assert received(rig) == [ONE_BUFFER + frame(30)]

    def test_large_frame_fills_several_buffers(self, rig):
        rig.start(1 << netbits.MRG_RXBUF)
        offer(rig, *[4096] * 17)
        rig.passt.setblocking(True)
        rig.passt.sendall(framed(frame(65000)))
        rig.loop.run()
        assert b"".join(received(rig)) == bytes(10) + b"\x10\x00" + frame(65000)

    def test_frame_waits_for_buffers_in_hand_and_on_the_socket(self, rig):
        rig.start(1 << netbits.MRG_RXBUF)
        offer(rig, 100)
        rig.passt.send(framed(frame(150), frame(70)))
        rig.loop.run()
        assert received(rig) == []
        offer(rig, 100)
        assert b"".join(received(rig)) == bytes(10) + b"\x02\x00" + frame(150)
        offer(rig, 100)
        assert received(rig) == [ONE_BUFFER + frame(70)]

    def test_frame_arrives_in_buffers_smaller_than_its_header(self, rig):
        rig.start(1 << netbits.MRG_RXBUF)
        offer(rig, 5)
        rig.passt.send(framed(frame(20)))
        rig.loop.run()
        offer(rig, *[5] * 6)
        assert b"".join(received(rig)) == bytes(10) + b"\x07\x00" + frame(20)

    def test_more_frames_in_hand_than_a_pass_takes_all_arrive(self, rig):
        rig.start(0)
        count = 150
        rig.passt.send(framed(*[frame(60, number) for number in range(count)]))
        arrived = []
        for _ in range(count):
            offer(rig, *[100] * rig.drivers[RX].free_slots)
            arrived += received(rig)
        assert arrived == [ONE_BUFFER + frame(60, number) for number in range(count)]

    def test_full_socket_holds_frames_back_and_loses_none(self, rig):
        rig.start(0)
        count = 0
        while not rig.drivers[TX].in_flight:
            rig.drivers[TX].add_chain([HEADER, frame(9000, count)])
            rig.kick(TX)
            rig.drivers[TX].collect()
            count += 1
        data = b""
        while more := drain(rig.passt):
            data += more
            rig.loop.run()
        assert data == framed(*[frame(9000, number) for number in range(count)])

    @pytest.mark.parametrize("size", [0, 13, 66000, 0xFFFF_FFFF])
    def test_length_that_cannot_be_ends_the_connection(self, rig, size):
        rig.start()
        offer(rig, 2000)
        rig.passt.send(struct.pack("!I", size) + frame(60))
        rig.loop.run()
        assert "bytes" in rig.device.counters.lost
        assert not rig.device.up

    @pytest.mark.parametrize("buffers", [[], [2000]], ids=["starved", "ready"])
    def test_end_of_passt_is_a_cable_pulled_out(self, rig, buffers):
        rig.start()
        offer(rig, *buffers) if buffers else rig.passt.send(framed(frame(60)))
        rig.loop.run()
        rig.passt.close()
        rig.loop.run()
        assert rig.device.counters.lost
        assert rig.device.read(6, 2) == 0
        rig.drivers[TX].add_chain([HEADER, frame(60)])
        rig.kick(TX)
        assert len(rig.drivers[TX].collect()) == 1

    def test_reset_in_the_middle_of_a_frame_keeps_the_stream_whole(self, rig):
        rig.start(0)
        rig.passt.send(framed(frame(60))[:30])
        rig.loop.run()
        rig.reset()
        rig.start(0)
        offer(rig, 500)
        rig.passt.send(framed(frame(60))[30:])
        rig.loop.run()
        assert received(rig) == [ONE_BUFFER + frame(60)]

    def test_card_offers_no_segments(self, rig):
        offered = rig.device.offered()
        for bit in (netbits.CSUM, netbits.HOST_TSO4, netbits.GUEST_TSO4, netbits.CTRL_GUEST_OFFLOADS):
            assert not offered >> bit & 1


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a program called passt on PATH, with this body in Python; ``arguments`` are what it gets."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(body):
        path = tmp_path / "passt"
        path.write_text(f"#!{sys.executable} -IS\nimport os, sys\n{body}\n")
        path.chmod(0o755)

    return make


ANSWER = """
fd = int(sys.argv[sys.argv.index("--fd") + 1])
os.write(fd, repr(sys.argv[1:]).encode())
"""


class TestStart:
    def test_it_gets_the_socket_and_its_arguments(self, program):
        program(ANSWER)
        passt = start_passt("--network user", ["-t", "none"])
        said = passt.ports[0]._socket.recv(1000)
        assert said.endswith(b"'-t', 'none']")
        assert b"--quiet" in said
        passt.close()

    def test_it_ends_with_our_end_of_the_socket(self, program):
        program(
            """
fd = int(sys.argv[sys.argv.index("--fd") + 1])
if os.fork() == 0:
    os.setsid()
    while os.read(fd, 100):
        pass
    os._exit(0)
"""
        )
        passt = start_passt("--network user", [])
        port = passt.ports[0]
        other = socket.socket(fileno=os.dup(port.fd))
        other.shutdown(socket.SHUT_WR)
        other.setblocking(True)
        assert other.recv(1) == b""
        other.close()
        passt.close()

    def test_missing_program_is_named_with_what_to_do(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(
            ConfigError, match=r"needs the program passt, .* \(on Debian: apt install passt\)\.$"
        ):
            start_passt("--network user", [])

    def test_its_last_words_are_the_reason(self, program):
        program(
            'print("Started as root, will change to nobody.\\nFailed to bind port 22", file=sys.stderr)\n'
            "sys.exit(1)"
        )
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(
            ConfigError, match=r"^--network user: passt did not start: Failed to bind port 22\.$"
        ):
            start_passt("--network user", [])
        assert len(os.listdir("/proc/self/fd")) == before

    def test_silent_failure_is_told(self, program):
        program("sys.exit(3)")
        with pytest.raises(ConfigError, match="it does not say why"):
            start_passt("--network user", [])

    def test_program_that_cannot_run_is_told(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        (tmp_path / "passt").write_text("#!/nonexistent/interpreter\n")
        (tmp_path / "passt").chmod(0o755)
        with pytest.raises(ConfigError, match=r"passt cannot be run: No such file"):
            start_passt("--network user", [])

    def test_file_that_is_no_program_is_passed_over(self, tmp_path, monkeypatch):
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "passt").write_text("")
        (tmp_path / "two").mkdir()
        (tmp_path / "two" / "passt").write_text("")
        (tmp_path / "two" / "passt").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/one:{tmp_path}/two")
        assert find_program("passt") == f"{tmp_path}/two/passt"

    def test_card_is_opened_with_ports_and_mtu(self, program):
        program(ANSWER)
        body = "user,publish=2222:22+53/udp,mtu=1400"
        card = Net.open(parse("--network", body, Net.SETTINGS, Net.POSITIONAL), make_services())
        said = card.end.ports[0]._socket.recv(1000).decode()
        assert "'-t', '127.0.0.1/2222:22', '-u', '127.0.0.1/53:53', '--mtu', '1400'" in said
        assert card.MTU == 1400
        card.close()
        card.close()

    def test_both_sides_are_told_of_packets_of_64_kib_unless_asked_otherwise(self, program):
        program(ANSWER)
        card = Net.open(parse("--network", "user", Net.SETTINGS, Net.POSITIONAL), make_services())
        said = card.end.ports[0]._socket.recv(1000).decode()
        assert "'--mtu', '65520'" in said
        assert card.offered() >> netbits.MTU & 1
        assert card.MTU == 65520
        card.close()

    def test_socket_holds_more_than_sockets_do_by_themselves_either_way(self, program):
        program(
            """
import socket
fd = int(sys.argv[sys.argv.index("--fd") + 1])
end = socket.socket(fileno=fd)
end.send(str(end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)).encode())
"""
        )
        plain, other = socket.socketpair()
        usual = plain.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        passt = start_passt("--network user", [])
        ours = passt.ports[0]._socket
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > usual
        assert int(ours.recv(100)) > usual
        for closed in (passt, plain, other):
            closed.close()


class TestEnd:
    def test_hanging_up_waits_until_passt_has_let_go(self):
        near, far = socket.socketpair()
        hung_up, early = threading.Event(), []

        def passt():
            far.sendall(framed(frame(60)) * 5000)  # more than fits: it must not be left stuck
            while far.recv(1000):
                pass
            early.append(hung_up.wait(0.1))
            far.close()

        other = threading.Thread(target=passt)
        other.start()
        PasstPort(near).close()
        hung_up.set()
        other.join()
        assert early == [False]
        assert near.fileno() == -1

    @pytest.mark.parametrize("talks", [False, True], ids=["silent", "talking"])
    def test_passt_that_does_not_go_is_left_behind(self, monkeypatch, talks):
        monkeypatch.setattr(passt_module, "_PATIENCE", 0.05)
        near, far = socket.socketpair()
        if talks:
            far.sendall(framed(frame(60)))
        PasstPort(near).close()
        assert near.fileno() == -1
        far.close()

    def test_passt_that_is_gone_is_not_waited_for(self):
        near, far = socket.socketpair()
        near.send(b"unread")
        far.close()
        PasstPort(near).close()
        assert near.fileno() == -1


class TestPublish:
    @pytest.mark.parametrize(
        ("text", "arguments"),
        [
            (None, ["-t", "none", "-u", "none"]),
            ("2222:22", ["-t", "127.0.0.1/2222:22", "-u", "none"]),
            ("80", ["-t", "127.0.0.1/80:80", "-u", "none"]),
            ("53/udp", ["-u", "127.0.0.1/53:53", "-t", "none"]),
            ("0.0.0.0/80:8080/tcp", ["-t", "0.0.0.0/80:8080", "-u", "none"]),
            ("::1/80", ["-t", "::1/80:80", "-u", "none"]),
            ("1:2+3:4/udp", ["-t", "127.0.0.1/1:2", "-u", "127.0.0.1/3:4"]),
        ],
    )
    def test_ports_become_arguments(self, text, arguments):
        assert publish_arguments(text) == arguments

    @pytest.mark.parametrize(
        "text",
        [
            "x",
            "0",
            "65536",
            "1:2:3",
            "1:",
            ":1",
            "1+",
            "+1",
            "1/sctp",
            "host/1",
            "1/2/3",
            "-1",
            "1:٣",
            "/udp",
        ],
    )
    def test_text_that_names_no_ports_is_refused(self, text):
        with pytest.raises(ConfigError, match=r"publish takes \[ADDRESS/\]HOST\[:GUEST\]\[/udp\]"):
            parse("--network", f"user,publish={text}", Net.SETTINGS, Net.POSITIONAL)

    @pytest.mark.parametrize("text", ["1:2+1:3", "1+01", "::1/1+::1/1:2", "1/udp+1/udp"])
    def test_port_that_is_published_twice_is_refused(self, text):
        with pytest.raises(ConfigError, match="publish takes each port of the host once, not"):
            parse("--network", f"user,publish={text}", Net.SETTINGS, Net.POSITIONAL)

    def test_port_is_another_one_at_another_address_or_for_udp(self):
        assert publish_arguments("1+1/udp+::1/1")[::2] == ["-t", "-u", "-t"]
