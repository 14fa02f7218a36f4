# SPDX-License-Identifier: Apache-2.0
import errno
import os
import socket
import stat
import struct

import pytest
from fakes.virtio import RAM, Rig

from pyvmm.devices import settings
from pyvmm.devices.console.file import FilePort
from pyvmm.devices.console.unixsocket import UnixPort
from pyvmm.devices.virtio.console import F_EMERG_WRITE, F_MULTIPORT, F_SIZE, Console
from pyvmm.errors import ConfigError

RX, TX, CONTROL_IN, CONTROL_OUT, RX1, TX1, RX2, TX2 = range(8)
READY, ADD, PORT_READY, CONSOLE, RESIZE, OPEN, NAME = 0, 1, 3, 4, 5, 6, 7
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


class FakeScreen:
    """A Screen that is full after ``room`` bytes."""

    def __init__(self, room=1 << 30):
        self.data = b""
        self.room = room
        self.waiting = []

    def write(self, data):
        self.data += data
        self.room -= len(data)
        return (lambda: None) if self.room <= 0 else None

    def when_room(self, callback):
        self.waiting.append(callback)

    def drain(self, room=1 << 30):
        self.room = room
        waiting, self.waiting = self.waiting, []
        for callback in waiting:
            callback()


class Guest:
    """Linux's side of a multiport console, over a rig."""

    def __init__(self, rig, buffers=8):
        self.rig = rig
        self.buffers = buffers

    def start(self, features=None):
        self.rig.start(features)
        self.offer(CONTROL_IN, self.buffers)
        self.control(0xFFFFFFFF, READY, 1)
        return self

    def offer(self, queue, count=4, size=64):
        for _ in range(count):
            self.rig.drivers[queue].add_chain([], [size])
        self.rig.kick(queue)

    def control(self, port, event, value):
        self.write(CONTROL_OUT, struct.pack("<IHH", port, event, value))
        self.rig.drivers[CONTROL_OUT].collect()

    def write(self, queue, *pieces):
        token = self.rig.drivers[queue].add_chain(pieces)
        self.rig.kick(queue)
        return token

    def read(self, queue):
        return b"".join(done.data for done in self.rig.drivers[queue].collect())

    def told(self):
        """Control messages since the last call: (port, event, value, payload). Buffers go back."""
        done = self.rig.drivers[CONTROL_IN].collect()
        self.offer(CONTROL_IN, len(done))
        return [(*struct.unpack("<IHH", message.data[:8]), message.data[8:]) for message in done]

    def take_port(self, number=1, opened=True):
        """As Linux does: say that it is ready, and open it."""
        self.control(number, PORT_READY, 1)
        if opened:
            self.control(number, OPEN, 1)
        return self.told()


@pytest.fixture
def screen():
    return FakeScreen()


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # tmp_path may be too long for a socket
    return "port.sock"


@pytest.fixture
def port(path):
    port = UnixPort("agent", path)
    yield port
    port.close()


@pytest.fixture
def clients():
    """Connects to a path, and closes what is left at the end."""
    made = []

    def connect(path):
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)
        client.setblocking(False)
        made.append(client)
        return client

    yield connect
    for client in made:
        client.close()


@pytest.fixture
def rig(port):
    with Rig(Console(None, [port])) as rig:
        yield rig


@pytest.fixture
def guest(rig):
    """A guest that has opened the port."""
    guest = Guest(rig).start()
    guest.take_port()
    return guest


def hung_up(client):
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
    except BlockingIOError:
        return False


# The machine's console


def speak(rig):
    """The guest puts something out: from then on it takes input."""
    rig.drivers[TX].add_chain([b"."])
    rig.kick(TX)


def test_input_waits_for_the_guests_first_output(screen):
    asked = []
    console = Console(screen, (), lambda: asked.append(True))
    with Rig(console) as rig:
        rig.start()
        rig.drivers[RX].add_chain([], [16])
        rig.kick(RX)
        assert console.receive(b"early") == 0
        speak(rig)
        assert asked
        assert console.receive(b"early") == 5


@PACKED
def test_output_reaches_the_screen_in_order(screen, packed):
    with Rig(Console(screen), packed=packed) as rig:
        rig.start()
        for number in range(40):
            rig.drivers[TX].add_chain([b"line ", b"%d\n" % number], indirect=bool(number % 2))
            rig.kick(TX)
            assert len(rig.drivers[TX].collect()) == 1
    assert screen.data == b"".join(b"line %d\n" % number for number in range(40))


@PACKED
def test_large_output_in_several_parts_reaches_the_screen_in_order(screen, packed):
    parts = [bytes([number]) * size for number, size in enumerate((1, 90_000, 3, 65_536), 1)]
    with Rig(Console(screen), packed=packed) as rig:
        rig.start()
        places, address = [], RAM + 0x20_0000  # beyond the drivers' own memory
        for part in parts:
            rig.memory.write(address, part)
            places.append((address, len(part)))
            address += len(part)
        token = rig.drivers[TX].add_chain(places)
        rig.kick(TX)
        assert [done.token for done in rig.drivers[TX].collect()] == [token]
    assert screen.data == b"".join(parts)


@PACKED
def test_input_fills_the_drivers_buffers_partly_or_over_several(screen, packed):
    console = Console(screen)
    with Rig(console, packed=packed) as rig:
        rig.start()
        speak(rig)
        for _ in range(3):
            rig.drivers[RX].add_chain([], [4, 4])
        rig.kick(RX)
        assert console.receive(b"abc") == 3
        assert console.receive(b"0123456789") == 10
        assert [done.data for done in rig.drivers[RX].collect()] == [b"abc", b"01234567", b"89"]
        assert rig.interrupts.queues[RX] >= 2


def test_input_without_buffers_is_refused_and_asked_for_when_there_are_some(screen):
    asked = []
    console = Console(screen, on_room=lambda: asked.append(1))
    with Rig(console) as rig:
        assert console.receive(b"early") == 0
        rig.start()
        speak(rig)
        assert asked == [1]
        assert console.receive(b"early") == 0
        rig.drivers[RX].add_chain([], [3])
        rig.kick(RX)
        assert asked == [1, 1]
        assert console.receive(b"early") == 3
        rig.drivers[RX].add_chain([], [3])
        rig.kick(RX)
        assert asked == [1, 1, 1]
        assert console.receive(b"ly") == 2
        rig.drivers[RX].add_chain([], [3])
        rig.kick(RX)
        assert asked == [1, 1, 1]
        assert b"".join(done.data for done in rig.drivers[RX].collect()) == b"early"


def test_input_asks_for_no_kicks_while_buffers_last(screen):
    console = Console(screen)
    with Rig(console) as rig:
        rig.start()
        speak(rig)
        driver = rig.drivers[RX]
        driver.add_chain([], [8])
        rig.kick(RX)
        console.receive(b"x")
        driver.add_chain([], [8])
        assert not driver.needs_kick()
        console.receive(b"y")
        console.receive(b"z")
        driver.add_chain([], [8])
        assert driver.needs_kick()


def test_full_screen_pauses_output_until_it_has_room(screen):
    screen.room = 100
    with Rig(Console(screen)) as rig:
        rig.start()
        for number in range(10):
            rig.drivers[TX].add_chain([b"%d" % number * 50])
        rig.kick(TX)
        assert len(rig.drivers[TX].collect()) == 2
        rig.kick(TX)
        assert len(screen.data) == 100
        screen.drain(200)
        rig.loop.run()
        assert len(screen.data) == 300
        screen.drain()
        rig.loop.run()
        assert len(screen.data) == 500
        assert len(rig.drivers[TX].collect()) == 8


def test_huge_chain_is_copied_piece_by_piece(screen):
    screen.room = 1
    with Rig(Console(screen)) as rig:
        rig.start()
        rig.drivers[TX].add_chain([(RAM, 1 << 20)])
        rig.kick(TX)
        assert len(screen.data) == 64 << 10
        assert rig.drivers[TX].collect() == []
        screen.drain()
        rig.loop.run()
        assert len(screen.data) == 1 << 20
        assert len(rig.drivers[TX].collect()) == 1


def test_reset_while_the_screen_is_full_forgets_the_output_and_the_next_driver_is_served(screen):
    screen.room = 1
    with Rig(Console(screen)) as rig:
        rig.start()
        rig.drivers[TX].add_chain([b"ab"])
        rig.drivers[TX].add_chain([b"lost"])
        rig.kick(TX)
        rig.reset()
        screen.drain()
        rig.loop.run()
        assert screen.data == b"ab"
        rig.drivers[TX].reset()
        rig.start()
        rig.drivers[TX].add_chain([b"cd"])
        rig.kick(TX)
        assert screen.data == b"abcd"


def test_break_is_what_hvc_takes_for_sysrq(screen):
    console = Console(screen)
    with Rig(console) as rig:
        assert not console.send_break()
        rig.start()
        speak(rig)
        assert not console.send_break()
        rig.drivers[RX].add_chain([], [8])
        assert console.send_break()
        assert rig.drivers[RX].collect()[0].data == b"\x0f"


def test_emergency_write_prints_before_there_is_a_driver(screen):
    console = Console(screen)
    screen.room = 1
    after = console.write(8, 4, 0x1241)
    assert screen.data == b"A"
    assert after is not None  # too much piled up: the vCPU waits, not the loop


def test_lone_console_offers_no_ports(screen):
    console = Console(screen)
    assert console.offered() == 1 << F_SIZE | 1 << F_EMERG_WRITE
    assert len(console.queue_sizes) == 2
    assert console.read(4, 4) == 1


@pytest.mark.parametrize("queue", [RX, TX])
def test_queue_reset_forgets_only_that_queue(screen, queue):
    console = Console(screen)
    screen.room = 1
    with Rig(console) as rig:
        rig.start()
        rig.drivers[RX].add_chain([], [8])
        rig.drivers[TX].add_chain([b"ab"])
        rig.drivers[TX].add_chain([b"cd"])
        rig.kick(TX)
        with rig.core.lock:
            rig.core.queue_select = queue
            after = rig.core.disable_queue()
        after()
        screen.drain()
        rig.loop.run()
        assert screen.data == (b"ab" if queue == TX else b"abcd")
        assert console.receive(b"x") == (1 if queue == TX else 0)


# Size


def test_resize_changes_the_configuration_and_interrupts(screen):
    console = Console(screen)
    with Rig(console) as rig:
        rig.start()
        console.resize(132, 43)
        assert (console.read(0, 2), console.read(2, 2)) == (132, 43)
        assert rig.interrupts.config == 1
        console.resize(132, 43)
        assert rig.interrupts.config == 1


def test_driver_that_starts_later_is_told_the_size(screen):
    console = Console(screen)
    console.resize(80, 24)
    with Rig(console) as rig:
        rig.start()
        assert rig.interrupts.config == 1
        rig.reset()
        assert (console.read(0, 2), console.read(2, 2)) == (80, 24)


def test_multiport_driver_is_told_the_size_by_message(screen, port):
    console = Console(screen, [port])
    console.resize(80, 24)
    with Rig(console) as rig:
        guest = Guest(rig).start()
        guest.told()
        assert (0, RESIZE, 1, struct.pack("<HH", 80, 24)) in guest.take_port(0)
        console.resize(100, 30)
        rig.loop.run()
        assert guest.told() == [(0, RESIZE, 1, struct.pack("<HH", 100, 30))]


# Control messages


def test_ports_are_announced_named_and_reported_closed(screen, port):
    with Rig(Console(screen, [port])) as rig:
        guest = Guest(rig).start()
        assert rig.device.read(4, 4) == 2
        assert guest.told() == [(0, ADD, 1, b""), (1, ADD, 1, b"")]
        assert guest.take_port(0) == [(0, CONSOLE, 1, b""), (0, OPEN, 1, b"")]
        assert guest.take_port(1) == [(1, NAME, 1, b"agent"), (1, OPEN, 0, b"")]


def test_port_zero_is_not_announced_without_a_screen(rig):
    guest = Guest(rig).start()
    assert guest.told() == [(1, ADD, 1, b"")]
    odd = rig.device.odd
    guest.control(0, PORT_READY, 1)
    assert rig.device.odd == odd + 1
    assert guest.told() == []


def test_console_without_a_screen_needs_a_driver_that_knows_ports(rig):
    assert not rig.device.acceptable(0)
    assert rig.device.acceptable(1 << F_MULTIPORT)


def test_driver_without_multiport_gets_the_console_alone(screen, port):
    console = Console(screen, [port])
    with Rig(console) as rig:
        guest = Guest(rig).start(features=0)
        assert guest.told() == []
        guest.write(TX, b"hello")
        guest.offer(RX)
        assert console.receive(b"input") == 5
        guest.write(TX1, b"nobody")
    assert screen.data == b"hello"


def test_messages_wait_for_buffers_and_do_not_pile_up(rig):
    guest = Guest(rig, buffers=0).start()
    for _ in range(1000):
        guest.control(0, READY, 1)
        guest.control(1, PORT_READY, 1)
        guest.control(1, OPEN, 1)
    guest.offer(CONTROL_IN, 8)
    assert len(guest.told()) <= 3
    assert rig.broken == ""


@pytest.mark.parametrize(
    "message", [b"", b"\0" * 7, struct.pack("<IHH", 99, OPEN, 1), b"\0\0\0\0\xff\xff\1\0"]
)
def test_odd_control_messages_are_counted_and_given_back(rig, message):
    rig.start()
    odd = rig.device.odd
    rig.drivers[CONTROL_OUT].add_chain([message] if message else [(RAM, 0)])
    rig.kick(CONTROL_OUT)
    assert [done.written for done in rig.drivers[CONTROL_OUT].collect()] == [0]
    assert rig.device.odd == odd + 1
    assert rig.broken == ""


def test_control_buffer_too_small_for_the_message_gets_what_fits(rig):
    rig.start()
    guest = Guest(rig)
    guest.offer(CONTROL_IN, 3, size=10)
    guest.control(1, PORT_READY, 1)
    name, opened = rig.drivers[CONTROL_IN].collect()
    assert name.data == struct.pack("<IHH", 1, NAME, 1) + b"ag"
    assert opened.written == 8


# A port on a socket


def test_socket_is_for_its_owner_alone(port, path):
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_client_that_connects_opens_the_port_and_data_goes_both_ways(guest, clients, path):
    client = clients(path)
    guest.rig.loop.run()
    assert guest.told() == [(1, OPEN, 1, b"")]
    guest.offer(RX1)
    client.send(b"question")
    guest.rig.loop.run()
    assert guest.read(RX1) == b"question"
    guest.write(TX1, b"ans", b"wer")
    assert client.recv(100) == b"answer"


@PACKED
def test_megabytes_pass_unchanged_both_ways_however_slow_a_side_is(port, clients, path, packed):
    sent = os.urandom(1 << 20)
    with Rig(Console(None, [port]), packed=packed) as rig:
        guest = Guest(rig).start()
        guest.take_port()
        client = clients(path)
        rig.loop.run()
        received, offset = b"", 0
        while len(received) < len(sent):
            try:
                offset += client.send(sent[offset : offset + 100_000])
            except BlockingIOError:
                pass
            guest.offer(RX1, 3, size=4096)
            received += guest.read(RX1)
        assert received == sent
        assert guest.told() == [(1, OPEN, 1, b"")]
        received, offset = b"", 0
        while len(received) < len(sent):
            rig.drivers[TX1].collect()
            while offset < len(sent) and rig.drivers[TX1].free_slots > 8:
                guest.write(TX1, sent[offset : offset + 10_000])
                offset += 10_000
            try:
                received += client.recv(30_000)
            except BlockingIOError:
                pass
            rig.loop.run()
        assert received == sent


@PACKED
def test_megabyte_takes_a_few_hundred_notifications_at_most(port, clients, path, packed):
    # As Linux does it: buffers and writes of one size, 64 in the queue, each given back at once.
    size, page = 1 << 20, 2048
    with Rig(Console(None, [port]), packed=packed, size=64) as rig:
        guest = Guest(rig).start()
        guest.take_port()
        client = clients(path)
        guest.offer(RX1, 64, size=page)
        received, kicks, left = 0, 0, size
        while received < size:
            try:
                left -= client.send(bytes(min(left, 100_000)))
            except BlockingIOError:
                pass
            rig.loop.run()
            for done in rig.drivers[RX1].collect():
                received += len(done.data)
                rig.drivers[RX1].add_chain([], [page])
                if rig.drivers[RX1].needs_kick():
                    kicks += 1
                    rig.kick(RX1)
        assert kicks < 256
        assert rig.interrupts.queues[RX1] < 256
        received, kicks, left = 0, 0, size
        while received < size:
            rig.drivers[TX1].collect()
            while left and rig.drivers[TX1].free_slots:
                rig.drivers[TX1].add_chain([bytes(page)])
                left -= page
                if rig.drivers[TX1].needs_kick():
                    kicks += 1
                    rig.kick(TX1)
            try:
                received += len(client.recv(100_000))
            except BlockingIOError:
                pass
            rig.loop.run()
        assert kicks < 256
        assert rig.interrupts.queues[TX1] < 256


def test_nothing_is_read_from_the_client_before_the_guest_opens(rig, clients, path):
    guest = Guest(rig).start()
    guest.take_port(opened=False)
    client = clients(path)
    client.send(b"early")
    guest.offer(RX1)
    assert guest.read(RX1) == b""
    guest.control(1, OPEN, 1)
    assert guest.read(RX1) == b"early"


def test_output_written_while_nobody_is_connected_waits_for_the_client(guest, clients, path):
    guest.write(TX1, b"early ")
    guest.write(TX1, b"words")
    assert guest.rig.drivers[TX1].collect() == []
    client = clients(path)
    guest.rig.loop.run()
    assert client.recv(100) == b"early words"
    assert len(guest.rig.drivers[TX1].collect()) == 2


def test_client_that_leaves_closes_the_port_after_its_last_bytes(guest, clients, path):
    client = clients(path)
    guest.rig.loop.run()
    guest.told()
    client.send(b"last words")
    client.close()
    guest.rig.loop.run()
    assert guest.told() == []
    guest.offer(RX1)
    assert guest.read(RX1) == b"last words"
    assert guest.told() == [(1, OPEN, 0, b"")]


def test_client_that_leaves_unread_output_behind_loses_it_and_the_next_gets_none_of_it(guest, clients, path):
    first = clients(path)
    guest.rig.loop.run()
    written = 0
    while not guest.rig.drivers[TX1].in_flight:
        guest.write(TX1, b"x" * 50_000)
        guest.rig.drivers[TX1].collect()
        written += 1
    guest.write(TX1, b"x")
    first.close()
    guest.rig.loop.run()
    assert len(guest.rig.drivers[TX1].collect()) == 2
    second = clients(path)
    guest.rig.loop.run()
    assert [message[2] for message in guest.told()] == [1, 0, 1]
    guest.write(TX1, b"fresh")
    assert second.recv(100) == b"fresh"


def test_second_client_waits_until_the_first_has_gone_and_the_guest_knows(guest, clients, path):
    first, second = clients(path), clients(path)
    guest.rig.loop.run()
    guest.told()
    second.send(b"2")
    guest.offer(RX1)
    assert guest.read(RX1) == b""
    for _ in range(guest.buffers):  # use up what it could be told in
        guest.control(1, PORT_READY, 1)
    guest.rig.drivers[CONTROL_IN].collect()
    first.close()
    guest.rig.loop.run()
    assert guest.read(RX1) == b""
    guest.offer(CONTROL_IN)
    assert [message[:3] for message in guest.told()][-2:] == [(1, OPEN, 0), (1, OPEN, 1)]
    assert guest.read(RX1) == b"2"


def test_guest_that_closes_ends_the_conversation_after_its_last_bytes(guest, clients, path):
    client = clients(path)
    guest.rig.loop.run()
    guest.told()
    guest.write(TX1, b"bye")
    guest.control(1, OPEN, 0)
    assert client.recv(100) == b"bye"
    assert hung_up(client)
    assert guest.told() == [(1, OPEN, 0, b"")]
    again = clients(path)
    guest.rig.loop.run()
    guest.control(1, OPEN, 1)
    guest.offer(RX1)
    again.send(b"again")
    guest.rig.loop.run()
    assert guest.read(RX1) == b"again"
    assert guest.told() == [(1, OPEN, 1, b"")]


def test_guest_that_closes_while_the_client_is_slow_still_gets_everything_out(guest, clients, path):
    client = clients(path)
    guest.rig.loop.run()
    sent = b""
    while not guest.rig.drivers[TX1].in_flight:
        guest.write(TX1, b"%d" % len(sent) * 5000)
        sent += b"%d" % len(sent) * 5000
        guest.rig.drivers[TX1].collect()
    guest.control(1, OPEN, 0)
    client.send(b"too late")
    received = b""
    while len(received) < len(sent):
        received += client.recv(1 << 16)
        guest.rig.loop.run()
    assert received == sent
    assert hung_up(client)


def test_client_that_goes_while_the_guest_is_closing_ends_the_conversation(guest, clients, path):
    client = clients(path)
    guest.rig.loop.run()
    while not guest.rig.drivers[TX1].in_flight:
        guest.write(TX1, b"x" * 50_000)
        guest.rig.drivers[TX1].collect()
    guest.control(1, OPEN, 0)
    guest.told()
    client.close()
    guest.rig.loop.run()
    assert guest.told() == [(1, OPEN, 0, b"")]
    assert len(guest.rig.drivers[TX1].collect()) == 1


def test_client_that_left_before_the_guest_opened_is_still_heard(rig, clients, path):
    guest = Guest(rig).start()
    guest.take_port(opened=False)
    guest.offer(RX1)
    client = clients(path)
    client.send(b"message")
    client.close()
    rig.loop.run()
    guest.write(TX1, b"to nobody")
    assert len(rig.drivers[TX1].collect()) == 1
    guest.told()
    guest.control(1, OPEN, 1)
    assert guest.read(RX1) == b"message"
    assert guest.told() == [(1, OPEN, 0, b"")]


def test_client_stays_connected_over_a_reset_of_the_device(guest, clients, path):
    client = clients(path)
    guest.rig.loop.run()
    guest.rig.reset()
    assert not hung_up(client)
    assert guest.rig.loop.watches == []
    for driver in guest.rig.drivers:
        driver.reset()
    client.send(b"still here")
    again = Guest(guest.rig).start()
    assert again.take_port() == [(1, ADD, 1, b""), (1, NAME, 1, b"agent"), (1, OPEN, 1, b"")]
    again.offer(RX1)
    assert again.read(RX1) == b"still here"
    again.write(TX1, b"so am I")
    assert client.recv(100) == b"so am I"


def test_reset_while_the_guest_closes_ends_the_conversation(guest, clients, path):
    client = clients(path)
    guest.rig.loop.run()
    while not guest.rig.drivers[TX1].in_flight:
        guest.write(TX1, b"x" * 50_000)
        guest.rig.drivers[TX1].collect()
    guest.control(1, OPEN, 0)
    guest.rig.reset()
    while data := client.recv(1 << 16):
        assert set(data) == {ord("x")}


def test_two_ports_do_not_mix(path, clients):
    one, two = UnixPort("one", path), UnixPort("two", path + "2")
    with Rig(Console(None, [one, two])) as rig:
        guest = Guest(rig).start()
        guest.take_port(1)
        guest.take_port(2)
        first, second = clients(path), clients(path + "2")
        rig.loop.run()
        guest.write(TX2, b"two")
        guest.write(TX1, b"one")
        assert (first.recv(9), second.recv(9)) == (b"one", b"two")
        guest.offer(RX1)
        guest.offer(RX2)
        second.send(b"2")
        first.send(b"1")
        rig.loop.run()
        assert (guest.read(RX1), guest.read(RX2)) == (b"1", b"2")
    one.close()
    two.close()


def test_port_the_driver_gave_up_takes_no_client(rig, clients, path):
    guest = Guest(rig).start()
    guest.take_port()
    guest.control(1, PORT_READY, 0)
    clients(path)
    rig.loop.run()
    assert guest.told() == []


def test_watches_do_not_pile_up_in_a_session(guest, clients, path):
    for _ in range(20):
        client = clients(path)
        guest.rig.loop.run()
        guest.told()
        client.close()
        guest.rig.loop.run()
        guest.told()
    assert len(guest.rig.core.session._watches) == len(guest.rig.doorbells) + 1


def test_descriptors_are_all_given_back(path, clients):
    def count():
        return len(os.listdir("/proc/self/fd"))

    before = count()
    port = UnixPort("agent", path)
    with Rig(Console(None, [port])) as rig:
        Guest(rig).start().take_port()
        client = clients(path)
        rig.loop.run()
    port.close()
    port.close()
    client.close()
    assert count() == before
    assert not os.path.exists(path)


def test_host_out_of_descriptors_lets_the_client_wait(rig, clients, path, monkeypatch):
    guest = Guest(rig).start()
    guest.take_port()
    client = clients(path)

    def fail(_fd):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", fail)
        rig.loop.run()
    assert guest.told() == []
    client.close()
    client = clients(path)
    rig.loop.advance(1)
    assert guest.told() == [(1, OPEN, 1, b"")]


@pytest.mark.parametrize("queue", [RX1, TX1])
def test_reset_of_a_queue_of_a_closed_port_does_not_touch_the_other(guest, clients, path, queue):
    client = clients(path)
    guest.rig.loop.run()
    guest.told()
    driver, core = guest.rig.drivers[TX1], guest.rig.core
    for _ in range(200):  # until the socket is full, with more in the queue
        for _ in range(4):
            driver.add_chain([b"x" * 8000])
        guest.rig.kick(TX1)
        if len(driver.collect()) < 4:
            break
    guest.control(1, OPEN, 0)
    # An index that cannot be: whoever looks at the queue finds the ring broken.
    guest.rig.memory.write(driver.setup.driver + 2, struct.pack("<H", 0x7777))
    with core.lock:
        core.queue_select = queue
        core.disable_queue()
        assert not guest.rig.broken
    guest.rig.loop.run()
    assert not guest.rig.broken
    if queue == TX1:
        assert guest.told() == [(1, OPEN, 0, b"")]
        assert b"x" in client.recv(100)
        client.settimeout(1)
        while client.recv(1 << 20):
            pass


# What else can be at the host end


@PACKED
def test_port_on_a_file_appends_what_the_guest_writes(tmp_path, packed):
    (tmp_path / "log").write_bytes(b"before\n")
    port = FilePort("log", str(tmp_path / "log"))
    data = os.urandom(100_000)
    with Rig(Console(None, [port]), packed=packed) as rig:
        guest = Guest(rig).start()
        assert (1, OPEN, 1, b"") in guest.take_port()
        for start in range(0, len(data), 9_000):
            guest.write(TX1, data[start : start + 4000], data[start + 4000 : start + 9000])
            assert len(rig.drivers[TX1].collect()) == 1
    port.close()
    assert (tmp_path / "log").read_bytes() == b"before\n" + data


def test_file_that_cannot_be_written_closes_the_port(tmp_path, monkeypatch):
    port = FilePort("log", str(tmp_path / "log"))
    with Rig(Console(None, [port])) as rig:
        guest = Guest(rig).start()
        guest.take_port()
        os.close(port._fd)
        port._fd = os.open("/dev/full", os.O_WRONLY)
        guest.write(TX1, b"lost")
        assert guest.told() == [(1, OPEN, 0, b"")]
        guest.write(TX1, b"waits")
    port.close()


def test_queue_reset_while_a_file_is_written_does_not_disturb_what_comes_next(tmp_path):
    port = FilePort("log", str(tmp_path / "log"))
    with Rig(Console(None, [port])) as rig:
        guest = Guest(rig).start()
        guest.take_port()
        rig.workers.held = True
        guest.write(TX1, b"old")
        core = rig.core
        with core.lock:
            core.queue_select = TX1
            core.disable_queue()
        rig.workers.release()
        driver = rig.drivers[TX1]
        driver.reset()
        with core.lock:
            setup = driver.setup
            core.queue_select = TX1
            for name in ("size", "desc", "driver", "device"):
                core.set_queue(name, getattr(setup, name))
            core.enable_queue()
        driver.add_chain([b"new"])
        rig.workers.held = False
        rig.kick(TX1)
        assert len(driver.collect()) == 1
    port.close()
    assert (tmp_path / "log").read_bytes() == b"oldnew"


def reset_before_the_write_ends(rig):
    """The driver resets the device while the workers are held; they go on after that."""
    with rig.core.lock:
        after = rig.core.reset()
    rig.workers.release()
    after()
    rig.workers.held = False


@PACKED
def test_file_gets_what_was_written_just_before_the_driver_resets_the_device(tmp_path, packed):
    port = FilePort("log", str(tmp_path / "log"))
    with Rig(Console(None, [port]), packed=packed) as rig:
        guest = Guest(rig).start()
        guest.take_port()
        rig.workers.held = True
        guest.write(TX1, b"being written, ")
        for piece in (b"in the ring, ", b"and not even kicked"):
            rig.drivers[TX1].add_chain([piece, piece.upper()])
        reset_before_the_write_ends(rig)
    port.close()
    assert (tmp_path / "log").read_bytes() == (
        b"being written, in the ring, IN THE RING, and not even kickedAND NOT EVEN KICKED"
    )


def test_file_gets_nothing_more_of_a_driver_that_goes_when_writing_has_failed(tmp_path):
    port = FilePort("log", str(tmp_path / "log"))
    with Rig(Console(None, [port])) as rig:
        guest = Guest(rig).start()
        guest.take_port()
        log, port._fd = port._fd, (full := os.open("/dev/full", os.O_WRONLY))
        rig.workers.held = True
        guest.write(TX1, b"lost")
        port._fd = log
        guest.write(TX1, b"would leave a hole before it")
        reset_before_the_write_ends(rig)
    port.close()
    os.close(full)
    assert (tmp_path / "log").read_bytes() == b""


def test_client_gets_what_was_written_just_before_the_machine_ends(path, clients):
    port = UnixPort("agent", path)
    client = clients(path)
    with Rig(Console(None, [port])) as rig:
        guest = Guest(rig).start()
        guest.take_port()
        rig.loop.run()
        rig.drivers[TX1].add_chain([b"good", b"bye"])  # and the kick is still under way
    port.close()
    assert client.recv(100) == b"goodbye"


# Hostile drivers


@pytest.mark.parametrize("queue", range(8))
def test_broken_ring_ends_the_session_and_the_loop_rests(screen, path, queue):
    ports = [UnixPort("one", path), UnixPort("two", path + "2")]
    with Rig(Console(screen, ports)) as rig:
        guest = Guest(rig).start()
        guest.take_port(1)
        guest.take_port(2)
        rig.drivers[queue].add_raw([(0, 16, 0)])  # not memory
        rig.kick(queue)
        if queue in (RX, RX1, RX2, CONTROL_IN):
            rig.device.receive(b"x")
        rig.loop.run()
        rig.reset()
        for driver in rig.drivers:
            driver.reset()
        Guest(rig).start()
    for port in ports:
        port.close()


def test_driver_that_gives_readable_and_empty_buffers_for_input_gets_them_back(screen):
    console = Console(screen)
    with Rig(console) as rig:
        rig.start()
        speak(rig)
        rig.drivers[RX].add_chain([b"not writable"])
        rig.drivers[RX].add_chain([], [(RAM, 0)])
        rig.drivers[RX].add_chain([], [8])
        rig.kick(RX)
        assert console.receive(b"x") == 1
        assert [done.data for done in rig.drivers[RX].collect()] == [b"", b"", b"x"]


def test_writable_and_empty_buffers_for_output_are_given_back(screen):
    with Rig(Console(screen)) as rig:
        rig.start()
        rig.drivers[TX].add_chain([], [8])
        rig.drivers[TX].add_chain([(RAM, 0)])
        rig.drivers[TX].add_chain([b"x"])
        rig.kick(TX)
        assert len(rig.drivers[TX].collect()) == 3
    assert screen.data == b"x"


# State


def test_state_goes_over_to_a_device_of_the_same_make(rig, tmp_path):
    guest = Guest(rig).start()
    guest.take_port()
    state = rig.device.state()
    other = Console(None, [FilePort("agent", str(tmp_path / "file"))])
    other.load_state(state)
    assert other.state() == state
    assert other.ports[1].guest_open
    other.ports[1].close()


# What the user may say


def said(text):
    return settings.parse(f"--port {text}", text, Console.SETTINGS, Console.POSITIONAL)


def test_setting_names_a_socket_or_a_file(path, tmp_path):
    for text, kind in ((f"agent,unix={path}", UnixPort), (f"log.1,file={tmp_path}/a:b=c", FilePort)):
        Console.check(said(text))
        device = Console.open(said(text), None)
        assert isinstance(device.ports[1], kind)
        assert device.ports[1].name == text.partition(",")[0]
        device.close()
    assert (tmp_path / "a:b=c").exists()
    assert not os.path.exists(path)


def test_checking_a_setting_makes_nothing(path, tmp_path):
    Console.check(said(f"agent,unix={path}"))
    Console.check(said(f"agent,file={tmp_path}/file"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("agent", "NAME,unix=PATH"),
        ("unix=x", "NAME,unix=PATH"),
        ("agent,unix=x,file=y", "NAME,unix=PATH"),
        ("agent=unix:/tmp/x", "NAME,unix=PATH"),
        ("agent=unix:/tmp/x,unix=y", "NAME,unix=PATH"),
        ("agent:unix,unix=x", "NAME,unix=PATH"),
        ("a/b,unix=x", "letters"),
        ("..,unix=x", "letters"),
        ("a" * 64 + ",unix=x", "63 at most"),
        ("a\u00e4,unix=x", "letters"),
    ],
)
def test_setting_that_makes_no_sense_is_refused(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for use in (Console.check, lambda chosen: Console.open(chosen, None)):
        with pytest.raises(ConfigError, match=message):
            use(said(text))
    assert os.listdir() == []


def test_socket_a_dead_program_left_is_replaced(path):
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(path)
    port = UnixPort("agent", path)
    port.close()


def test_socket_of_a_living_program_is_left_alone(path):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        with pytest.raises(ConfigError, match="another program listens"):
            UnixPort("agent", path)
        assert os.path.exists(path)


def test_file_in_the_sockets_place_is_left_alone(path):
    with open(path, "w"):
        pass
    with pytest.raises(ConfigError, match="is not a socket"):
        UnixPort("agent", path)


def test_socket_that_cannot_be_made_is_the_users_to_mend(path):
    with pytest.raises(ConfigError, match="there is no folder nowhere; make it"):
        UnixPort("agent", "nowhere/port.sock")
    with pytest.raises(ConfigError, match="107 bytes"):
        UnixPort("agent", "x" * 108)


def test_socket_somebody_else_made_since_is_not_removed(path):
    port = UnixPort("agent", path)
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        port.close()
        assert os.path.exists(path)


def test_file_that_cannot_be_opened_is_the_users_to_mend(tmp_path):
    with pytest.raises(ConfigError, match="it is a folder; name a file in it"):
        FilePort("log", str(tmp_path))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="not a file"):
        FilePort("log", str(tmp_path / "fifo"))
    with pytest.raises(ConfigError, match="not a file"):
        FilePort("log", "/dev/null")


def parse(body):
    return settings.parse(f"--device console,{body}", body, Console.SETTINGS, Console.POSITIONAL)


def test_device_of_its_own_has_one_port(path):
    device = Console.open(parse(f"agent,unix={path}"), None)
    assert device.offered() == 1 << F_MULTIPORT
    assert os.path.exists(path)
    device.close()
    assert not os.path.exists(path)


def test_more_ports_than_there_can_be_are_refused(tmp_path):
    port = FilePort("log", str(tmp_path / "file"))
    assert len(Console(None, [port] * 31).queue_sizes) == 66
    with pytest.raises(ConfigError, match="31 named ports at most"):
        Console(None, [port] * 32)
    port.close()
