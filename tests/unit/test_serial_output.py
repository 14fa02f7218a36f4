# SPDX-License-Identifier: Apache-2.0
"""What a guest prints through the serial port, mostly without exits, on a whole machine with a fake KVM."""

import threading

import pytest
from fakes.guests import DBCN, IER, LSR, idle, prints, prints_much
from fakes.kernel import call, fail, fail_entry, failure, mmio_read, mmio_write, reset, sbi, shutdown
from fakes.threads import happens, in_time, read

from pyvmm import layout, outcome
from pyvmm.kvm import uapi
from pyvmm.outcome import Outcome

UART = layout.UART_BASE
DOTS = b"." * 32
QUIT = Outcome(outcome.QUIT, "enough")


def answers(it):
    return it.kernel.vms[0].vcpus[0].answers


def read_all(it, size):
    data = b""
    while len(data) < size:
        data += read(it.reader, size - len(data))
    return data


def test_text_of_a_guest_that_prints_and_then_sleeps_arrives(run):
    it = run([*prints_much(b"good night"), idle])
    it.start()
    assert read_all(it, 42) == DOTS + b"good night"
    it.machine.end(QUIT)
    it()


def test_long_text_comes_out_whole_and_without_exits(run):
    text = bytes(range(256)) * 8
    it = run([*prints_much(text), shutdown()])
    (thread,) = it.machine.prepare().threads
    it()
    assert it.output == DOTS + text
    assert thread.exits[uapi.KVM_EXIT_MMIO] < 100


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (shutdown(), outcome.POWEROFF),
        (fail_entry(), outcome.HUNG),
        (failure(5), outcome.HUNG),
        (failure(1000), outcome.FAILED),
    ],
)
def test_nothing_is_missing_at_the_end(run, end, reason):
    it = run([*prints_much(b"last words\n"), end])
    assert it().reason == reason
    assert it.output == DOTS + b"last words\n"


def test_nothing_is_missing_when_the_end_finds_the_guest_looking_at_the_line_status(run):
    it = run()
    end = call(lambda vcpu: it.machine.prepare().threads[0].request_stop())
    it.kernel.scripts = {0: [*prints_much(b"last words\n"), end, mmio_read(LSR, 1)]}
    it.start()
    assert read_all(it, 43) == DOTS + b"last words\n"
    it.machine.end(QUIT)
    it()


def test_machine_that_dies_while_stores_wait_ends_the_run(run):
    """KVM answers every ioctl on it with EIO then, also that of the interrupt which follows a store."""
    it = run()

    def die(vcpu):
        vcpu.vm.ioctls[uapi.KVM_IRQ_LINE] = lambda argument: fail(5)

    enable = mmio_write(IER, 1, 2)
    it.kernel.scripts = {
        0: [*prints_much(), enable, mmio_read(UART + 2, 1), *prints(b"x"), call(die), failure(5)]
    }
    assert it().reason == outcome.HUNG


def test_panic_is_noticed_without_an_exit(run):
    text = b"\nKernel panic - not syncing: oops\n---[ end Kernel panic - not syncing: oops ]---\n"
    it = run([*prints_much(text), idle])
    assert it().reason == outcome.PANIC
    assert it.output == DOTS + text


def test_text_of_an_earlier_guest_comes_before_that_of_the_next(run):
    it = run()
    scripts = iter([[*prints_much(b"one"), reset()], [*prints_much(b"two"), shutdown()]])
    it.kernel.scripts = {0: [call(lambda vcpu: it.kernel.scripts.update({0: next(scripts)})), *next(scripts)]}
    it()
    assert it.output == DOTS + b"one" + DOTS + b"two"


def test_order_with_other_ways_to_print_is_kept(run):
    it = run([*prints_much(b"a"), sbi(DBCN, 2, ord("b")), *prints(b"c"), sbi(DBCN, 2, ord("d")), shutdown()])
    it()
    assert it.output == DOTS + b"abcd"


def test_registers_are_stored_to_in_the_guests_order(run):
    """What is stored between two changes of LCR is the divisor."""
    lcr = UART + 3
    divisor = [mmio_write(lcr, 1, 0x80), *prints(b"\7"), mmio_read(UART, 1), mmio_write(lcr, 1, 3)]
    it = run([*prints_much(b"a"), *divisor, *prints(b"b"), shutdown()])
    it()
    assert it.output == DOTS + b"ab"
    assert answers(it) == [7]


def test_line_status_is_idle_while_stores_wait(run):
    it = run([*prints_much(b"a"), mmio_read(LSR, 1), *prints(b"b"), mmio_read(LSR, 1), shutdown()])
    it()
    assert answers(it) == [0x60, 0x60]
    assert it.output == DOTS + b"ab"


@pytest.mark.parametrize("length", [2, 4, 8])
def test_wider_load_of_the_line_status_is_none(run, length):
    it = run([mmio_read(LSR, length), shutdown()])
    it()
    assert answers(it) == [0]


def test_every_hart_carries_out_what_is_there(run):
    printed = threading.Event()
    it = run(cpus=2)
    it.kernel.scripts = {
        0: [*prints_much(b"zero"), call(lambda vcpu: printed.set()), idle],
        1: [call(lambda vcpu: happens(printed)), sbi(DBCN, 2, ord("1")), shutdown()],
    }
    it.machine.prepare()
    it.kernel.vm.vcpus[1].mp_state = uapi.KVM_MP_STATE_RUNNABLE
    it()
    assert it.output == DOTS + b"zero1"


def test_pause_leaves_nothing_in_the_ring(run):
    printed = threading.Event()
    it = run([*prints_much(b"text"), call(lambda vcpu: printed.set()), idle])
    it.start()
    happens(printed)
    in_time(it.machine.pause)
    assert read_all(it, 36) == DOTS + b"text"
    in_time(it.machine.resume)
    it.machine.end(QUIT)
    it()


def test_guest_that_prints_for_ever_is_held_back_while_nobody_reads(run, monkeypatch):
    monkeypatch.setattr("pyvmm.console.output._HIGH_WATER", 4096)
    monkeypatch.setattr("pyvmm.machine._PATIENCE", 0.0)
    stored = []

    def print_on(vcpu):
        stored.append(vcpu)
        vcpu.script += [*prints(b"x" * 64), print_on]

    it = run([*prints_much(), print_on])
    waiting = threading.Event()
    writer = it.machine._writer
    wait = writer._wait_for_room
    writer._wait_for_room = lambda: (waiting.set(), wait())
    it.start()
    happens(waiting)
    assert len(writer._buffer) < 4096 + 200
    in_time(it.machine.close)


# The trace


def test_traced_stores_are_exits(run):
    it = run([*prints(b"." * 40), shutdown()], trace="mmio")
    it()
    stores = [line for line in it.trace if "uart.THR write 1 0x2e" in line]
    assert len(stores) == 40
    assert it.kernel.vm.zones == []


def test_trace_that_begins_later_shows_every_store_from_then_on(run):
    it = run()
    toggle = call(lambda vcpu: it.machine.toggle_trace())
    it.kernel.scripts = {
        0: [*prints_much(b"before"), toggle, *prints(b"after"), mmio_read(LSR, 1), shutdown()]
    }
    it()
    assert it.output == DOTS + b"beforeafter"
    shown = [line.split("] ", 1)[1].split()[1:5] for line in it.trace]
    assert [words[3] for words in shown[:5]] == [hex(value) for value in b"after"]
    assert shown[5][:2] == ["uart.LSR", "read"]


def test_stores_are_no_exits_again_once_the_trace_is_off(run):
    it = run()
    toggle = call(lambda vcpu: it.machine.toggle_trace())
    it.kernel.scripts = {
        0: [*prints_much(b"before"), toggle, *prints(b"then"), toggle, *prints_much(b"after"), shutdown()]
    }
    it()
    assert it.output == DOTS + b"beforethen" + DOTS + b"after"
    assert len(it.trace) == len("then")


def test_trace_of_sbi_calls_alone_leaves_stores_as_they_are(run):
    it = run([*prints_much(b"text"), shutdown()], trace="sbi")
    it()
    assert it.output == DOTS + b"text"
