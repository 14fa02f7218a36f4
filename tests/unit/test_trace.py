# SPDX-License-Identifier: Apache-2.0
from fakes.lines import RecordingLine

from pyvmm.trace import Trace, TracedLine


def make(kinds=("mmio",), uptime=1.5):
    lines = []
    return Trace(kinds, lines.append, lambda: uptime), lines


def test_line_carries_the_guests_uptime_source_name_and_text():
    trace, lines = make(uptime=123.4567891)
    trace.line("cpu0", "uart.THR", "write 1 0x41")
    assert lines == ["[  123.456789] cpu0   uart.THR write 1 0x41"]


def test_summary_counts_by_device_busiest_first():
    trace, _ = make()
    trace.line("cpu0", "rtc.TIME_LOW", "read 4 0x0")
    for _ in range(3):
        trace.line("cpu0", "uart.THR", "write 1 0x41")
    trace.line("cpu1", "uart.LSR", "read 1 0x60")
    assert [line.split() for line in trace.summary()] == [
        ["uart", "1", "read,", "3", "write"],
        ["rtc", "1", "read"],
    ]


def test_what_comes_while_the_trace_is_disabled_is_neither_shown_nor_counted():
    trace, lines = make()
    for trace.enabled in (True, False, True):
        trace.line("cpu0", "uart.THR", "write 1 0x41")
    assert len(lines) == 2
    assert trace.summary() == ["uart             2 write"]


def test_traced_line_passes_on_everything_and_shows_changes_only():
    trace, lines = make(("irq",))
    inner = RecordingLine(5)
    line = TracedLine(inner, "uart", trace)
    line.set(True)
    line.set(True)
    line.set(False)
    line.pulse()
    assert line.number == 5
    assert [text.split("] ")[1].split() for text in lines] == [
        ["irq", "uart.irq5", "raise"],
        ["irq", "uart.irq5", "lower"],
        ["irq", "uart.irq5", "pulse"],
    ]
