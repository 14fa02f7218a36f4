# SPDX-License-Identifier: Apache-2.0
import re
import threading
from pathlib import Path

import pytest

from pyvmm.testing import log as logs
from pyvmm.testing.errors import visible
from pyvmm.testing.log import ConsoleLog


@pytest.fixture
def log(tmp_path):
    it = ConsoleLog(tmp_path / "console.log")
    yield it
    it.end()


def never():
    return False


def test_file_has_every_byte_and_a_time_a_line(log):
    log.feed(b"one\r\ntw")
    log.feed(b"o\xff\x1b[1m\r\n")
    log.feed(b"thr")
    text = re.sub(rb"\[ *[0-9.]+\] ", b"T ", log.path.read_bytes())
    assert text == b"T one\r\nT two\xff\x1b[1m\r\nT thr"


def test_lines_are_text_whatever_the_bytes(log):
    log.feed(b"one\r\n\xff\xfe\r\npart")
    assert log.lines() == ["one", "\N{REPLACEMENT CHARACTER}" * 2, "part"]


def test_line_without_end_is_cut(log):
    for _ in range(10):
        log.feed(b"x" * 4000)
    assert max(map(len, log.lines())) <= 4096


def test_memory_is_bounded_under_a_flood(log, monkeypatch):
    monkeypatch.setattr(logs, "PENDING", 3 << 20)
    monkeypatch.setattr(logs, "FILE_LIMIT", 1 << 20)
    for _ in range(64):
        log.feed(b"0123456789abcde\n" * 4096)
    assert len(log.raw) == logs.KEPT
    assert log.path.stat().st_size < 8 << 20
    assert log.path.read_bytes().endswith(b"(the guest printed more than is kept)\n")
    taken = 0
    while data := log.take(1 << 20, 0, never):
        taken += len(data)
    assert taken == 3 << 20


def test_full_disk_costs_the_file_and_nothing_else():
    log = ConsoleLog(Path("/dev/full"))
    log.feed(b"one\n")
    log.feed(b"two\n")
    log.end()
    assert (log.lines(), log.raw) == (["one", "two"], b"one\ntwo\n")
    assert log.incomplete == "No space left on device"


def test_watcher_that_has_gone_is_shown_no_more(tmp_path):
    shown = []

    def show(data):
        shown.append(data)
        raise BrokenPipeError

    log = ConsoleLog(tmp_path / "console.log", show)
    log.feed(b"one\n")
    log.feed(b"two\n")
    log.end()
    assert (shown, log.lines()) == ([b"one\n"], ["one", "two"])


def test_taking_waits_for_output_and_ends_with_the_guest(log):
    taker = threading.Timer(0.05, lambda: log.feed(b"late"))
    taker.start()
    assert log.take(100, 60, never) == b"late"
    assert log.take(100, 0, never) is None
    threading.Timer(0.05, log.end).start()
    assert log.take(100, 60, never) == b""


def test_panic_is_the_end_once_all_before_it_was_taken(log):
    log.feed(b"Kernel panic - not syncing: why\n---[ end Kernel panic - not syncing: why ]---\n")
    assert log.panicked
    assert log.panic.message == "Kernel panic - not syncing: why"
    assert log.take(12, None, lambda: True) == b"Kernel panic"
    assert log.take(1000, None, lambda: True)
    assert log.take(1000, None, lambda: True) == b""
    assert log.take(1000, 0, never) is None


def test_banner_is_found(log):
    log.feed(b"[    0.000000] Linux version 7.0.1 (builder@x)\r\n")
    assert log.banner == "7.0.1 (builder@x)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("\x1b[2J", "^[[2J"), ("\a\0", "^G^@"), ("a\tb", "a\tb"), ("\x9b", "\\x9b"), ("\r\n", "\n"), ("é", "é")],
)
def test_control_characters_are_spelled_out(text, shown):
    assert visible(text) == shown
