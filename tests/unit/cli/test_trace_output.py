# SPDX-License-Identifier: Apache-2.0
"""Where trace, log and output go, and what happens when that place takes nothing."""

import os
import subprocess
from types import SimpleNamespace

import pytest
from fakes.threads import Background, in_time, read

from pyvmm.cli import traceout
from pyvmm.cli.traceout import TraceOutput
from pyvmm.errors import ConfigError

ENOSPC = "No space left on device"


def words(err):
    """What pyvmm said in its own name."""
    return [line for line in err.splitlines() if line.startswith("pyvmm: ")]


def test_trace_goes_to_its_file_and_the_summary_to_stderr(pyvmm, tmp_path):
    path = tmp_path / "trace"
    code, out, err = pyvmm("hello", "--trace=mmio", f"--trace-out={path}").end()
    assert (code, out) == (0, b"hello\n")
    shown = path.read_text().splitlines()
    assert len(shown) == len("hello\n")
    assert "uart.THR write 1 0x68" in shown[0]
    assert "uart.THR" not in err
    assert err.endswith("uart             6 write\npyvmm: the guest powered off\n")


def test_trace_goes_to_stderr_without_a_file(pyvmm):
    code, _, err = pyvmm("hello", "--trace=mmio").end()
    assert code == 0
    assert err.count("uart.THR write") == len("hello\n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--trace=mmio", "--trace-out=/dev/full"], f"pyvmm: the trace ends here: {ENOSPC}"),
        (["--log=/dev/full"], f"pyvmm: the log /dev/full ends here: {ENOSPC}"),
    ],
)
def test_full_disk_ends_trace_or_log_with_one_sentence_and_the_guest_goes_on(pyvmm, options, said):
    code, out, err = pyvmm("hello", "--quiet", *options).end()
    assert (code, out) == (0, b"hello\n")
    assert words(err) == [said]


def test_full_disk_under_the_output_ends_the_run_with_one_sentence_and_code_125(pyvmm):
    with open("/dev/full", "wb") as full:
        code, _, err = pyvmm("idle", "--quiet", stdout=full).end()
    assert code == 125
    assert err == f"pyvmm: The console's output cannot be written: {ENOSPC}.\n"


def test_full_disk_under_stderr_costs_the_guest_nothing(pyvmm):
    with open("/dev/full", "wb") as full:
        code, out, _ = pyvmm("hello", "--trace=mmio", stderr=full).end()
    assert (code, out) == (0, b"hello\n")


def test_reader_of_stderr_that_stalls_does_not_hold_the_guest_up(pyvmm):
    it = pyvmm("looking", "--quiet", "--trace=mmio", stdin=subprocess.PIPE)
    it.wait_for(b"done\n")  # nobody has read a line of the trace
    code, _, err = it.end(b"q")
    assert code == 0
    *shown, summary, losses = err.splitlines()
    all_of_them = sum(int(word) for word in summary.split() if word.isdigit())
    assert all_of_them > 4000
    assert 0 < int(losses.split()[0]) == all_of_them - len(shown)
    assert losses.endswith(" lines of the trace were dropped: its reader was too slow")


@pytest.fixture
def fifo(tmp_path):
    """The path of a FIFO, and the descriptor of its reader, which reads nothing by itself."""
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    yield path, reader
    os.close(reader)


def test_lines_that_nobody_reads_are_dropped_and_counted(fifo, monkeypatch):
    monkeypatch.setattr("pyvmm.console.output._HIGH_WATER", 4096)
    path, reader = fifo
    output = TraceOutput(path)
    output.open()
    in_time(lambda: [output.show(f"{number:099}") for number in range(3000)])
    [said] = output.losses()
    assert said.endswith("lines of the trace were dropped: its reader was too slow")
    kept = (3000 - int(said.split()[0])) * 100
    closing = Background(output.close)
    got = b""
    while data := read(reader, 1 << 16):
        got += data
    closing.result()
    assert len(got) == kept


def test_trace_without_losses_says_nothing_of_them(tmp_path):
    output = TraceOutput(str(tmp_path / "trace"))
    output.open()
    output.show("line")
    output.close()
    assert output.losses() == []
    assert (tmp_path / "trace").read_text() == "line\n"


def test_file_is_closed_at_the_end(tmp_path):
    before = os.listdir("/proc/self/fd")
    for lines in (0, 1):
        output = TraceOutput(str(tmp_path / "trace"))
        output.open()
        for _ in range(lines):
            output.show("line")
        output.close()
        assert os.listdir("/proc/self/fd") == before


def test_file_is_left_to_a_writer_that_is_stuck_in_it(fifo, monkeypatch):
    """Its number could be another file's by the time that the reader reads on."""
    monkeypatch.setattr(traceout, "_PATIENCE", 0.0)
    path, reader = fifo
    output = TraceOutput(path)
    output.open()
    output.show("x" * (1 << 18))
    left = (1 << 18) + 1 - len(read(reader, 1))  # the writer is at it
    in_time(output.close)
    os.fstat(output._fd)
    while left:
        left -= len(read(reader, 1 << 16))
    in_time(output._writer._thread.join)
    os.close(output._fd)


def test_file_that_cannot_be_made_is_one_sentence():
    with pytest.raises(
        ConfigError, match="The trace cannot be written to /nonexistent/x: there is no folder"
    ):
        TraceOutput("/nonexistent/x").open()


@pytest.mark.parametrize(("tty", "end"), [(True, "\r\n"), (False, "\n")])
def test_line_on_a_terminal_ends_with_a_carriage_return(capfd, monkeypatch, tty, end):
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: tty))
    output = TraceOutput(None)
    output.open()
    output.show("line")
    output.close()
    assert capfd.readouterr().err == f"line{end}"


def test_failure_is_said_once(capfd):
    output = TraceOutput("/dev/full")
    output.open()
    for _ in range(3):
        output.show("line")
    output.close()
    assert capfd.readouterr().err == f"pyvmm: the trace ends here: {ENOSPC}\n"
