# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from fakes.lines import RecordingLine, RecordingSink
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.devices.uart8250 import Uart8250

RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7

RDI, THRI, RLSI, MSI = 1, 2, 4, 8
NONE, MODEM, THRE, RX, LINE_STATUS, TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
DLAB, LOOP = 0x80, 0x10
DR, OE, BI, IDLE, FIFO_ERROR = 0x01, 0x02, 0x10, 0x60, 0x80


class Driver:
    """The guest's and the host's side of one port."""

    def __init__(self) -> None:
        self.irq = RecordingLine()
        self.sink = RecordingSink()
        self.rooms = 0
        self.uart = Uart8250(self.irq, self.sink, self.on_room)

    def on_room(self):
        assert not self.uart.lock.locked()  # these tests access it without the bus, which locks
        self.rooms += 1

    def read(self, offset):
        return self.uart.read(offset, 1)

    def write(self, offset, value):
        return self.uart.write(offset, 1, value)

    def listen(self, fifo=0x01):
        self.write(FCR, fifo)
        self.write(IER, RDI)

    def cause(self):
        return self.read(IIR) & 0x0F


@pytest.fixture
def port():
    return Driver()


# Transmission


def test_byte_written_goes_to_the_sink_at_once(port):
    for value in b"hello\xff\x00":
        port.write(THR, value)
    assert port.sink.data == b"hello\xff\x00"


def test_transmitter_is_always_idle(port):
    port.write(THR, 0x41)
    assert port.read(LSR) == IDLE


def test_what_the_sink_asks_to_run_after_the_write_reaches_the_bus(port):
    port.sink.after = object()
    assert port.write(THR, 0x41) is port.sink.after
    assert port.write(SCR, 1) is None


def test_enabling_thri_raises_thre_each_time():
    """The 8250 driver's start-up test: the second IIR read must show THRE again."""
    port = Driver()
    port.write(IER, THRI)
    assert (port.irq.level, port.cause()) == (True, THRE)
    port.write(IER, 0)
    port.write(IER, THRI)
    assert (port.irq.level, port.cause()) == (True, THRE)


def test_rewriting_thri_while_set_does_not_raise_it_again(port):
    port.write(IER, THRI)
    port.read(IIR)
    port.write(IER, THRI | RDI)
    assert (port.irq.level, port.cause()) == (False, NONE)


def test_reading_iir_clears_thre_and_the_line(port):
    port.write(IER, THRI)
    port.read(IIR)
    assert (port.irq.level, port.cause(), port.read(LSR)) == (False, NONE, IDLE)


def test_reading_iir_for_another_cause_leaves_thre(port):
    port.listen()
    port.write(IER, RDI | THRI)
    port.uart.receive(b"x")
    assert [port.cause(), port.cause()] == [RX, RX]
    port.read(RBR)
    assert (port.cause(), port.cause()) == (THRE, NONE)


def test_each_thr_write_raises_thre_again(port):
    port.write(IER, THRI)
    port.read(IIR)
    port.write(THR, 1)
    assert (port.irq.level, port.cause()) == (True, THRE)


def test_burst_of_writes_changes_the_line_once(port):
    port.write(IER, THRI)
    port.read(IIR)
    before = len(port.irq.changes)
    for _ in range(16):
        port.write(THR, 1)
    assert port.irq.changes[before:] == [True]


def test_thre_is_not_raised_while_disabled(port):
    port.write(THR, 1)
    assert (port.irq.level, port.cause()) == (False, NONE)


# Reception


def test_received_bytes_come_out_in_order(port):
    port.listen()
    assert port.uart.receive(b"abc") == 3
    assert port.read(LSR) == IDLE | DR
    assert bytes(port.read(RBR) for _ in range(3)) == b"abc"
    assert (port.read(LSR), port.read(RBR), port.irq.level) == (IDLE, 0, False)


@pytest.mark.parametrize(("bits", "trigger"), [(0x00, 1), (0x40, 4), (0x80, 8), (0xC0, 14)])
def test_trigger_level_tells_data_from_timeout(port, bits, trigger):
    port.listen(0x01 | bits)
    for count in range(1, 17):
        assert port.uart.receive(b"x") == 1
        assert port.irq.level
        assert port.cause() == (RX if count >= trigger else TIMEOUT)


def test_input_beyond_the_fifo_is_left_with_the_host(port):
    port.listen()
    assert port.uart.receive(b"0123456789abcdefXYZ") == 16
    assert port.uart.receive(b"XYZ") == 0
    assert port.read(LSR) == IDLE | DR


def test_input_without_fifo_is_one_byte_at_a_time(port):
    port.listen(0)
    assert (port.uart.receive(b"ab"), port.uart.receive(b"b")) == (1, 0)
    assert (port.read(IIR), port.read(RBR)) == (RX, ord("a"))
    assert port.uart.receive(b"b") == 1


def test_sixteen_kilobytes_pass_through_intact(port):
    data = bytes(range(256)) * 64
    port.listen()
    rest, out = data, bytearray()
    while rest:
        rest = rest[port.uart.receive(rest) :]
        while port.read(LSR) & DR:
            out.append(port.read(RBR))
    assert out == data


def test_host_is_asked_again_once_the_fifo_is_drained(port):
    port.listen()
    port.uart.receive(b"x" * 17)
    for _ in range(15):
        port.read(RBR)
    assert port.rooms == 0
    port.read(RBR)
    assert port.rooms == 1


def test_host_that_got_rid_of_everything_is_not_asked(port):
    port.listen()
    port.uart.receive(b"x" * 16)
    for _ in range(16):
        port.read(RBR)
    assert port.rooms == 0


def test_input_waits_until_the_guest_enables_its_interrupt(port):
    assert port.uart.receive(b"x") == 0
    port.write(IER, RDI)
    assert port.rooms == 1
    assert port.uart.receive(b"x") == 1


def test_input_waits_until_the_guest_polls(port):
    assert port.uart.receive(b"xy") == 0
    for _ in range(3):
        port.read(LSR)
    assert (port.rooms, port.uart.receive(b"xy")) == (0, 0)
    port.read(LSR)
    assert (port.rooms, port.uart.receive(b"x")) == (1, 1)
    assert (port.read(LSR), port.read(RBR), port.uart.receive(b"y")) == (IDLE | DR, ord("x"), 1)


def test_transmit_loop_of_a_driver_is_not_taken_for_polling(port):
    for _ in range(20):
        port.read(LSR)
        port.write(THR, 0x41)
        port.read(LSR)
    assert port.uart.receive(b"x") == 0


def test_start_up_of_a_driver_loses_no_input(port):
    """FIFO clears and blind reads of RBR come before the receive interrupt is enabled."""
    port.uart.receive(b"typed ahead")
    for offset, value in ((FCR, 1), (FCR, 7), (FCR, 0)):
        port.write(offset, value)
    for _ in range(2):
        assert [port.read(offset) for offset in (LSR, RBR, IIR, MSR)][:2] == [IDLE, 0]
    port.write(FCR, 1)
    port.write(IER, RDI)
    assert (port.rooms, port.uart.receive(b"typed ahead")) == (1, 11)


def test_break_is_a_zero_byte_with_its_line_status(port):
    port.listen()
    port.write(IER, RDI | RLSI)
    assert port.uart.send_break()
    port.uart.receive(b"h")
    assert port.cause() == LINE_STATUS
    assert port.read(LSR) == IDLE | DR | BI | FIFO_ERROR
    assert port.read(LSR) == IDLE | DR
    assert (port.cause(), port.read(RBR), port.read(RBR)) == (RX, 0, ord("h"))


def test_break_behind_other_bytes_shows_when_its_turn_comes(port):
    port.listen()
    port.write(IER, RDI | RLSI)
    port.uart.receive(b"a")
    port.uart.send_break()
    assert (port.cause(), port.read(LSR)) == (RX, IDLE | DR | FIFO_ERROR)
    port.read(RBR)
    assert port.cause() == LINE_STATUS
    assert port.read(LSR) == IDLE | DR | BI | FIFO_ERROR


def test_break_without_room_is_refused_and_asked_for_again(port):
    port.listen(0)
    port.uart.receive(b"x")
    assert not port.uart.send_break()
    port.read(RBR)
    assert port.rooms == 1
    assert port.uart.send_break()


# FIFO control


@pytest.mark.parametrize(("fcr", "left"), [(0x01, 1), (0x05, 1), (0x03, 0), (0x00, 0), (0x02, 0)])
def test_fifo_is_cleared_by_its_bit_and_by_switching_it(port, fcr, left):
    port.listen()
    port.uart.receive(b"x")
    port.write(FCR, fcr)
    assert (port.read(LSR) & DR, port.irq.level) == (left, bool(left))


def test_byte_from_before_the_fifo_was_enabled_is_kept(port):
    port.listen(0)
    port.uart.receive(b"x")
    port.write(FCR, 0x81)
    assert port.read(RBR) == ord("x")


def test_fifo_bits_without_enable_are_ignored(port):
    port.listen(0)
    port.uart.receive(b"x")
    port.write(FCR, 0xC2)
    assert (port.read(IIR), port.read(RBR)) == (RX, ord("x"))


def test_iir_shows_whether_the_fifo_is_on(port):
    assert port.read(IIR) == NONE
    port.write(FCR, 0xC1)
    assert port.read(IIR) == 0xC0 | NONE
    port.write(FCR, 0)
    assert port.read(IIR) == NONE


def test_lcr_writes_leave_the_fifo_and_read_back(port):
    port.listen()
    port.uart.receive(b"x")
    port.write(LCR, 0x03)
    assert (port.read(LCR), port.read(RBR)) == (0x03, ord("x"))


def test_clearing_the_fifo_asks_the_host_for_more(port):
    port.listen()
    port.uart.receive(b"x" * 20)
    port.write(FCR, 0x03)
    assert port.rooms == 1


# Interrupt priorities


def test_causes_are_reported_in_order_of_priority(port):
    port.listen()
    port.write(IER, RDI | THRI | RLSI | MSI)
    port.uart.send_break()
    port.write(MCR, LOOP)
    seen = []
    for acknowledge in (LSR, RBR, IIR, MSR):
        seen.append(port.cause())
        if acknowledge != IIR:  # reading it reported THRE and so cleared it
            port.read(acknowledge)
    assert seen == [LINE_STATUS, RX, THRE, MODEM]
    assert (port.cause(), port.irq.level) == (NONE, False)


@pytest.mark.parametrize(
    ("enable", "raised"), [(0, False), (RDI, True), (THRI, True), (RLSI, False), (MSI, False)]
)
def test_only_enabled_causes_drive_the_line(port, enable, raised):
    port.listen()
    port.write(THR, 1)
    port.uart.receive(b"x")
    port.write(IER, enable)
    assert port.irq.level is raised


def test_ier_has_four_bits(port):
    port.write(IER, 0xFF)
    assert port.read(IER) == 0x0F


# Modem lines and loopback


def test_modem_lines_of_a_console_are_connected(port):
    assert port.read(MSR) == 0xB0


def test_loopback_feeds_output_back_and_keeps_it_from_the_sink(port):
    port.write(FCR, 1)
    port.write(MCR, LOOP)
    for value in b"ping":
        port.write(THR, value)
    assert bytes(port.read(RBR) for _ in range(4)) == b"ping"
    assert port.sink.data == b""


@pytest.mark.parametrize(("mcr", "msr"), [(0, 0x00), (1, 0x20), (2, 0x10), (4, 0x40), (8, 0x80), (15, 0xF0)])
def test_loopback_turns_modem_outputs_into_inputs(port, mcr, msr):
    port.write(MCR, LOOP | mcr)
    assert port.read(MSR) & 0xF0 == msr


def test_modem_changes_are_reported_until_read(port):
    port.write(MCR, LOOP)
    port.write(IER, MSI)
    assert (port.irq.level, port.cause()) == (True, MODEM)
    assert port.read(MSR) == 0x0B
    assert (port.irq.level, port.read(MSR)) == (False, 0x00)


def test_ring_indicator_reports_its_trailing_edge_only(port):
    port.write(MCR, LOOP)
    port.read(MSR)
    port.write(MCR, LOOP | 4)
    assert port.read(MSR) == 0x40
    port.write(MCR, LOOP)
    assert port.read(MSR) == 0x04


def test_overrun_in_loopback_keeps_the_fifo_and_is_reported_once(port):
    port.write(FCR, 1)
    port.write(MCR, LOOP)
    port.write(IER, RLSI)
    for value in range(17):
        port.write(THR, value)
    assert port.cause() == LINE_STATUS
    assert (port.read(LSR), port.read(LSR)) == (IDLE | DR | OE, IDLE | DR)
    assert [port.read(RBR) for _ in range(16)] == list(range(16))


def test_overrun_without_fifo_overwrites_the_byte(port):
    port.write(MCR, LOOP)
    port.write(THR, 1)
    port.write(THR, 2)
    assert (port.read(LSR), port.read(RBR), port.read(LSR)) == (IDLE | DR | OE, 2, IDLE)


def test_input_waits_while_in_loopback(port):
    port.listen()
    port.write(MCR, LOOP)
    assert port.uart.receive(b"x") == 0
    port.write(MCR, 0)
    assert (port.rooms, port.uart.receive(b"x")) == (1, 1)


# The rest


def test_divisor_latch_hides_data_and_interrupt_enable(port):
    port.write(IER, MSI)
    port.write(LCR, DLAB)
    port.write(DLL, 0x12)
    port.write(DLM, 0x34)
    assert (port.read(DLL), port.read(DLM), port.sink.data) == (0x12, 0x34, b"")
    port.write(LCR, 0)
    assert (port.read(RBR), port.read(IER)) == (0, MSI)
    port.write(THR, 0x41)
    assert port.sink.data == b"A"


def test_scratch_register_holds_what_was_written(port):
    port.write(SCR, 0xA5)
    assert port.read(SCR) == 0xA5


@pytest.mark.parametrize(("offset", "value"), [(LSR, IDLE), (MSR, 0xB0)])
def test_status_registers_ignore_writes(port, offset, value):
    port.write(offset, 0xFF)
    assert port.read(offset) == value


def test_reset_drops_input_and_interrupt(port):
    port.listen()
    port.uart.receive(b"x")
    with port.uart.lock:
        port.uart.reset()
    assert (port.irq.level, port.read(LSR), port.read(IER), port.read(MSR)) == (False, IDLE, 0, 0xB0)


def test_restored_state_drives_the_line_and_keeps_the_input(port):
    port.listen(0xC1)
    port.uart.receive(b"ab")
    other = Driver()
    other.uart.load_state(port.uart.state())
    assert (other.irq.level, other.cause()) == (True, TIMEOUT)
    assert (other.read(RBR), other.read(RBR), other.irq.level) == (ord("a"), ord("b"), False)


def test_trace_names_follow_direction_and_bank(port):
    assert port.uart.decode(FCR, 1, True, 0xC1) == ("FCR", "enable=1 trigger=3")
    assert port.uart.decode(IIR, 1, False, 0xC4) == ("IIR", "id=4 fifo=3")
    assert port.uart.decode(0, 1, True, 0x41) == ("THR", "")
    port.write(LCR, DLAB)
    assert port.uart.decode(0, 1, True, 0x41) == ("DLL", "")


def test_devicetree_properties_follow_the_binding():
    node = {}
    Uart8250.describe(node)
    assert node == {
        "compatible": "ns16550a",
        "clock-frequency": 3686400,
        "fifo-size": 128,
        "tx-threshold": 0,
    }


# Help from whoever runs the guest


def test_much_output_is_told_once_for_every_32_bytes(port):
    told = []
    port.uart.on_busy = lambda: told.append(len(port.sink.data))
    for _ in range(100):
        port.write(THR, 1)
    assert told == [31, 63, 95]


def test_looped_back_output_is_not_much_output(port):
    port.uart.on_busy = pytest.fail
    port.write(MCR, LOOP)
    for _ in range(100):
        port.write(THR, 1)


def test_bytes_handed_over_at_once_are_output_and_raise_thre_once(port):
    port.write(IER, THRI)
    port.read(IIR)
    before = len(port.irq.changes)
    port.sink.after = object()
    assert port.uart.transmit(b"hello") is port.sink.after
    assert (port.sink.data, port.irq.changes[before:]) == (b"hello", [True])


def test_last_of_the_bytes_handed_over_is_the_divisor_while_it_is_selected(port):
    port.write(LCR, DLAB)
    assert port.uart.transmit(b"ab") is None
    assert (port.read(DLL), port.sink.data) == (ord("b"), b"")


class Statuses:
    """What LSR is said to show; ``known`` is it now."""

    def __init__(self, uart):
        self.known = None
        self.calls = 0
        uart.on_status = self
        with uart.lock:
            uart.tell_status()

    def __call__(self, offset, value):
        assert offset == LSR
        assert value != self.known
        self.known = value
        self.calls += 1


def test_status_is_known_while_nothing_was_received(port):
    status = Statuses(port.uart)
    port.listen()
    assert status.known == IDLE
    port.uart.receive(b"x")
    assert status.known is None
    port.read(RBR)
    assert (status.known, status.calls) == (IDLE, 3)


def test_status_is_unknown_before_the_interrupt_for_what_was_received(port):
    status = Statuses(port.uart)
    port.listen()
    known = []
    port.irq.set = lambda level: known.append((level, status.known))
    port.uart.receive(b"x")
    assert known == [(True, None)]


def test_status_must_be_asked_for_while_input_waits_for_a_guest_that_polls(port):
    status = Statuses(port.uart)
    assert port.uart.receive(b"x") == 0
    assert status.known is None
    for _ in range(4):
        port.read(LSR)
    assert port.rooms == 1
    assert port.uart.receive(b"x") == 1
    port.read(RBR)
    assert status.known == IDLE


def test_status_is_unknown_in_loopback(port):
    status = Statuses(port.uart)
    port.write(MCR, LOOP)
    assert status.known is None
    port.write(MCR, 0)
    assert status.known == IDLE


_stores = st.tuples(st.just("store"), st.sampled_from([THR, IER, FCR, LCR, MCR, SCR]), st.integers(0, 255))
_actions = st.one_of(
    st.tuples(st.just("print"), st.binary(min_size=1, max_size=20)),
    _stores,
    st.tuples(st.just("load"), st.integers(0, 7)),
    st.tuples(st.just("receive"), st.binary(min_size=1, max_size=20)),
    st.just(("break",)),
)


@given(st.lists(_actions, max_size=40))
def test_helped_port_looks_like_one_that_does_all_by_itself(actions):
    """One driver's stores to THR are carried out at once, the other's before whatever happens next.

    Loads of LSR are nothing that happens, while its value is known.
    """
    alone, helped = Driver(), Driver()
    status = Statuses(helped.uart)
    kept = b""
    for kind, *arguments in actions:
        if kind == "print":
            for value in arguments[0]:
                alone.write(THR, value)
            kept += arguments[0]
            continue
        if kind == "load" and arguments == [LSR] and status.known is not None:
            assert alone.read(LSR) == status.known
            alone.uart._polls = helped.uart._polls  # polls are counted once somebody waits for them
            continue
        if kept:
            helped.uart.transmit(kept)
            kept = b""
        results = [_act(driver, kind, *arguments) for driver in (alone, helped)]
        assert results[0] == results[1]
    if kept:
        helped.uart.transmit(kept)
    assert helped.sink.data == alone.sink.data
    assert helped.uart.state() == alone.uart.state()
    assert helped.irq.level == alone.irq.level


def _act(driver, kind, *arguments):
    if kind == "store":
        return driver.write(*arguments)
    if kind == "load":
        return driver.read(*arguments)
    return driver.uart.send_break() if kind == "break" else driver.uart.receive(*arguments)
