# SPDX-License-Identifier: Apache-2.0
import os
import threading

import pytest

from pyvmm.console.input import ConsoleInput
from pyvmm.console.output import ConsoleWriter
from pyvmm.console.panic import PanicWatch
from pyvmm.eventloop import EventLoop

PATIENCE = 30  # seconds; only ever waited for when a test fails


class Ends:
    """What a writer reports."""

    def __init__(self):
        self.lines = []
        self.closed = threading.Event()
        self.errors = []


@pytest.fixture
def ends():
    return Ends()


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            pass


def make_writer(ends, *fds):
    writer = ConsoleWriter(ends.lines.append, ends.errors.append)
    for fd in fds:
        writer.add_output(fd, lambda error: ends.closed.set())
    return writer


def test_writer_writes_everything_to_every_output_before_it_closes(ends, pipe, tmp_path):
    log = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
    writer = make_writer(ends, pipe[1], log)
    for number in range(1000):
        writer.write(b"%d\n" % number)
    writer.close()
    expected = b"".join(b"%d\n" % number for number in range(1000))
    assert os.read(pipe[0], 1 << 16) == expected
    assert (tmp_path / "log").read_bytes() == expected
    os.close(log)


def test_writer_shows_whole_lines_however_they_were_cut(ends, pipe):
    writer = make_writer(ends, pipe[1])
    for piece in (b"on", b"e\r\ntw", b"o\r\nthree", b"\r\n"):
        writer.write(piece)
    assert ends.lines == [b"one\r", b"two\r", b"three\r"]
    writer.close()


def test_writer_keeps_an_endless_line_bounded(ends, pipe):
    writer = make_writer(ends)
    for _ in range(100):
        writer.write(b"x" * 4096)
    assert len(writer._line) <= 2 * 4096
    writer.close()


def test_writer_makes_a_flood_wait_until_the_reader_has_caught_up(ends, pipe):
    writer = make_writer(ends, pipe[1])
    wait = None
    sent = 0
    while wait is None:
        wait = writer.write(b"y" * 65536)
        sent += 65536
    waiting = threading.Thread(target=wait)
    waiting.start()
    received = 0
    while received < sent:
        received += len(os.read(pipe[0], 1 << 16))
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    writer.close()


def test_writer_lets_waiting_ones_go_when_it_is_released(ends, pipe):
    writer = make_writer(ends, pipe[1])
    wait = None
    while wait is None:
        wait = writer.write(b"y" * 65536)
    waiting = threading.Thread(target=wait)
    waiting.start()
    writer.release()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    writer.close(patience=0)


def test_writer_calls_who_wants_room_once_there_is_some(ends, pipe):
    writer = make_writer(ends, pipe[1])
    room = threading.Event()
    while not writer.full:
        writer.write(b"y" * 65536)
    writer.when_room(room.set)
    assert not room.is_set()
    while not room.is_set():
        os.read(pipe[0], 1 << 16)
    assert not writer.full
    writer.release()
    writer.close(patience=0)


def test_writer_calls_who_wants_room_at_once_when_there_is_some(ends):
    writer = make_writer(ends)
    calls = []
    writer.when_room(lambda: calls.append("room"))
    assert calls == ["room"]
    writer.close()


def test_writer_calls_who_wants_room_when_it_is_released(ends, pipe):
    writer = make_writer(ends, pipe[1])
    while not writer.full:
        writer.write(b"y" * 65536)
    calls = []
    writer.when_room(lambda: calls.append("room"))
    writer.release()
    assert calls == ["room"]
    writer.close(patience=0)


def test_writer_takes_output_after_a_release(ends, pipe):
    writer = make_writer(ends, pipe[1])
    writer.release()
    writer.write(b"last words\n")
    writer.close()
    assert os.read(pipe[0], 100) == b"last words\n"


def test_writer_reports_a_reader_that_has_gone_and_goes_on_logging(ends, pipe, tmp_path):
    log = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
    writer = make_writer(ends, pipe[1], log)
    os.close(pipe[0])
    writer.write(b"one\n")
    assert ends.closed.wait(PATIENCE)
    writer.write(b"two\n")
    writer.close()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
    os.close(log)


class Taker:
    """A device that takes ``room`` bytes at most."""

    def __init__(self, room):
        self.room = room
        self.data = b""
        self.took = threading.Condition()

    def consume(self, data):
        with self.took:
            taken = data[: self.room]
            self.room -= len(taken)
            self.data += taken
            self.took.notify_all()
            return len(taken)

    def wait_for(self, data):
        with self.took:
            assert self.took.wait_for(lambda: self.data == data, PATIENCE), self.data


@pytest.fixture
def loop(pipe):
    """It ends before the pipe that it may be watching."""
    failures = []
    loop = EventLoop(failures.append)
    loop.start()
    yield loop
    loop.stop()
    assert failures == []


def test_input_arrives_as_the_device_makes_room_and_nothing_is_lost(loop, pipe):
    taker = Taker(3)
    source = ConsoleInput(loop, pipe[0], lambda data: [data])
    source.connect(taker.consume)
    source.start()
    os.write(pipe[1], b"0123456789")
    taker.wait_for(b"012")
    taker.room = 4
    loop.call_soon(source.offer)
    taker.wait_for(b"0123456")
    taker.room = 10
    loop.call_soon(source.offer)
    os.write(pipe[1], b"abc")
    taker.wait_for(b"0123456789abc")


def test_input_from_a_file_arrives_whole(loop, pipe, tmp_path):
    (tmp_path / "file").write_bytes(bytes(range(256)) * 100)
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    os.dup2(fd, pipe[0])  # which is open until the loop has ended
    os.close(fd)
    taker = Taker(1 << 20)
    source = ConsoleInput(loop, pipe[0], lambda data: [data])
    source.connect(taker.consume)
    source.start()
    taker.wait_for(bytes(range(256)) * 100)


def test_input_is_kept_while_nobody_takes_it(loop, pipe):
    source = ConsoleInput(loop, pipe[0], lambda data: [data])
    seen = threading.Event()
    os.write(pipe[1], b"early")
    source.start()
    loop.call_soon(lambda: loop.call_soon(seen.set))
    assert seen.wait(PATIENCE)
    taker = Taker(100)
    loop.call_soon(lambda: source.connect(taker.consume))
    taker.wait_for(b"early")


def test_input_filter_sees_keys_while_the_guest_takes_nothing(loop, pipe):
    quit_seen = threading.Event()

    def filter(data):
        if b"\x01x" in data:
            quit_seen.set()
        return [data]

    source = ConsoleInput(loop, pipe[0], filter)
    taker = Taker(0)
    source.connect(taker.consume)
    source.start()
    os.write(pipe[1], b"stuck")
    os.write(pipe[1], b"\x01x")
    assert quit_seen.wait(PATIENCE)


def test_panic_watch_tells_a_panic_from_its_end():
    watch = PanicWatch()
    watch.feed(b"[    1.0] Kernel panic - not syncing: sysrq triggered crash\r")
    assert (watch.seen, watch.ended) == (True, False)
    watch.feed(b"[    1.1] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---\r")
    assert watch.ended
    assert watch.message == "Kernel panic - not syncing: sysrq triggered crash"


def test_panic_watch_ignores_other_output():
    watch = PanicWatch()
    for line in (b"Kernel panic button pressed", b"", b"\xff\xfe", b"---[ end Kernel"):
        watch.feed(line)
    assert not watch.seen


def test_panic_message_cannot_drive_the_users_terminal():
    watch = PanicWatch()
    watch.feed(b"Kernel panic - not syncing: \x1b[2J\rpyvmm: the guest powered off" + b"x" * 1000)
    assert watch.message.startswith("Kernel panic - not syncing: ?[2J?pyvmm")
    assert len(watch.message) <= 200


def test_actions_keep_their_place_among_the_bytes_and_are_tried_until_done(loop, pipe):
    taker, tries = Taker(2), []

    def action():
        tries.append(taker.data)
        return len(tries) > 1

    source = ConsoleInput(loop, pipe[0], lambda data: [b"ab", action, b"cd"])
    source.connect(taker.consume)
    source.start()
    os.write(pipe[1], b"!")
    taker.wait_for(b"ab")
    taker.room = 10
    loop.call_soon(source.offer)
    taker.wait_for(b"abcd")
    assert tries == [b"ab", b"ab"]


def test_input_that_nobody_takes_costs_no_time_even_after_a_hang_up(loop, pipe):
    wakes = []
    source = ConsoleInput(loop, pipe[0], lambda data: (wakes.append(1), [data])[1])
    source.start()
    writer = threading.Thread(
        target=lambda: (os.write(pipe[1], bytes(100_000)), os.close(pipe[1])), daemon=True
    )
    writer.start()
    seen = threading.Event()

    def look(passes=2000):
        if passes:
            loop.call_soon(lambda: look(passes - 1))
        else:
            seen.set()

    look()
    assert seen.wait(PATIENCE)
    before = len(wakes)
    assert before <= 17  # 64 KiB in pieces of 4 KiB
    taker = Taker(1 << 20)
    source.connect(taker.consume)
    writer.join(PATIENCE)
    taker.wait_for(bytes(100_000))


def test_writer_reports_what_nobody_foresaw(ends, pipe):
    writer = ConsoleWriter(ends.lines.append, ends.errors.append)
    os.close(pipe[0])

    def explode(error):
        raise ZeroDivisionError

    writer.add_output(pipe[1], explode)
    writer.write(b"x")
    assert writer.close()
    assert [type(error) for error in ends.errors] == [ZeroDivisionError]


def test_writer_gives_up_on_a_reader_that_takes_nothing(ends, pipe):
    writer = make_writer(ends, pipe[1])
    writer.write(bytes(1 << 20))
    assert not writer.close(patience=0.05)
    while os.read(pipe[0], 1 << 16):
        if writer._thread.join(0.01) is None and not writer._thread.is_alive():
            break


# Observers


def test_observer_gets_what_was_kept_and_then_what_follows(ends):
    writer = make_writer(ends)
    writer.write(b"before ")
    seen = []
    forget = writer.observe(seen.append)
    writer.write(b"after")
    forget()
    forget()
    writer.write(b"unseen")
    assert seen == [b"before ", b"after"]
    writer.close()


def test_the_newest_256_kib_of_output_are_kept(ends):
    writer = make_writer(ends)
    for number in range(1000):
        writer.write(b"%01023d\n" % number)
    seen = []
    writer.observe(seen.append)
    assert b"".join(seen) == b"".join(b"%01023d\n" % number for number in range(744, 1000))
    assert len(writer._kept) <= (256 + 64) << 10
    writer.close()


def test_observer_sees_what_no_output_takes(ends, pipe):
    """Whoever is slow to read stdout holds up the guest, but not those who look on."""
    writer = make_writer(ends, pipe[1])
    seen = []
    writer.observe(seen.append)
    wait = None
    sent = b""
    while wait is None:
        wait = writer.write(b"y" * 65536)
        sent += b"y" * 65536
    assert b"".join(seen) == sent
    writer.release()
    writer.close(patience=0)


# Typed input


def test_typed_input_is_called_taken_once_the_device_has_all_of_it(loop):
    got, taken = [], threading.Event()
    room = [2, 2]

    def consume(data):
        count = room.pop() if room else 0
        got.append(bytes(data[:count]))
        return count

    typed = ConsoleInput(loop, None, lambda data: [data])
    typed.start()
    typed.connect(consume)
    typed.type(b"abcd", taken.set)
    for _ in range(2):
        loop.call_soon(typed.offer)
    assert taken.wait(PATIENCE)
    assert b"".join(got) == b"abcd"


def test_typed_input_keeps_its_order_with_what_is_read(loop, pipe):
    got, done = [], threading.Event()

    def consume(data):
        got.append(bytes(data))
        return len(data)

    both = ConsoleInput(loop, pipe[0], lambda data: [data])
    both.type(b"first", lambda: None)
    both.type(b"second", done.set)
    both.connect(consume)
    assert done.wait(PATIENCE)
    assert got == [b"first", b"second"]
