# SPDX-License-Identifier: Apache-2.0
import pytest
from fakes.guests import DBCN, IER, LSR, THR, idle
from fakes.kernel import call, mmio_read, mmio_write, sbi
from fakes.native import needs_native

from pyvmm import layout
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.kvm import uapi

ENTRY = layout.RAM_BASE + 0x20_0000
INTERRUPT_STATUS = layout.VIRTIO_BASE + 0x60
VIRTIO_MMIO = {"rng": [""], "virtio_transport": "mmio"}


def shown(it):
    """The trace's lines without their times."""
    return [line.split("] ", 1)[1] for line in it.trace]


def answers(it):
    return it.kernel.vm.vcpus[0].answers


def test_load_is_shown_with_its_value_and_answered(run):
    it = run([mmio_read(LSR, 1)], trace="mmio")
    it()
    assert shown(it) == [f"cpu0   uart.LSR read 1 0x60 thre=1 temt=1 pc=0x{ENTRY:x}"]
    assert answers(it) == [0x60]


def test_store_is_shown_before_what_it_causes(run):
    it = run([mmio_write(IER, 1, 2)], trace="mmio,irq")
    it()
    assert shown(it)[:2] == [f"cpu0   uart.IER write 1 0x2 thri=1 pc=0x{ENTRY:x}", "irq    uart.irq1 raise"]


def test_store_is_carried_out(run):
    it = run([mmio_write(THR, 1, ord("x")), mmio_write(THR, 1, ord("\n"))], trace="mmio")
    it()
    assert it.output == b"x\n"


@pytest.mark.parametrize(
    ("step", "line"),
    [
        (mmio_write(0x2000_0000, 4, 0x1234), "cpu0   unclaimed.0x20000000 write 4 0x1234 pc="),
        (mmio_read(0x2000_0008, 8), "cpu0   unclaimed.0x20000008 read 8 0x0 pc="),
    ],
)
def test_access_to_nowhere_is_shown_with_its_address(run, step, line):
    it = run([step], trace="mmio")
    it()
    [only] = shown(it)
    assert only.startswith(line)


def test_sbi_call_is_shown_with_its_answer_and_answered(run):
    it = run([sbi(DBCN, 2, ord("x")), sbi(0x0A00_0000, 3, 1, 2, 3)], trace="sbi")
    it()
    assert shown(it) == [
        f"cpu0   sbi.DBCN.console_write_byte call 0x78 0x0 0x0 -> 0 0x0 pc=0x{ENTRY:x}",
        f"cpu0   sbi.0xa000000.3 call 0x1 0x2 0x3 -> -2 0x0 pc=0x{ENTRY + 4:x}",
    ]
    assert answers(it) == [(0, 0), (-2, 0)]
    assert it.output == b"x"


@pytest.mark.parametrize(
    ("kinds", "names"),
    [("mmio", ["uart.THR"]), ("sbi", ["sbi.DBCN.console_write_byte"]), ("irq", [])],
)
def test_only_what_was_asked_for_is_shown(run, kinds, names):
    it = run([mmio_write(THR, 1, ord("x")), sbi(DBCN, 2, ord("x"))], trace=kinds)
    it()
    assert [line.split()[1] for line in shown(it)] == names


def test_line_names_the_hart(run):
    it = run({0: [idle], 1: [mmio_read(LSR, 1)]}, cpus=2, trace="mmio")
    it.machine.prepare()
    it.kernel.vm.vcpus[1].mp_state = uapi.KVM_MP_STATE_RUNNABLE
    it()
    assert [line.split()[0] for line in shown(it)] == ["cpu1"]


def test_nothing_is_read_from_the_vcpu_while_there_is_no_trace(run):
    it = run([mmio_write(THR, 1, ord("x"))])
    it.machine.prepare()
    before = it.kernel.calls.count("KVM_GET_ONE_REG")
    it()
    assert it.kernel.calls.count("KVM_GET_ONE_REG") == before


# What is answered without Python while there is no trace


def test_register_that_c_answers_is_shown(run):
    it = run([mmio_read(INTERRUPT_STATUS, 4)] * 2, trace="mmio", **VIRTIO_MMIO)
    it()
    assert [line.split()[1:3] for line in shown(it)] == [["rng0.INTERRUPT_STATUS", "read"]] * 2
    assert answers(it) == [0, 0]


@needs_native
@pytest.mark.parametrize("trace", ["", "mmio"])
def test_register_is_answered_by_c_while_the_trace_is_off(run, monkeypatch, trace):
    asked = []
    monkeypatch.setattr(VirtioMmio, "_read_interrupt_status", lambda device: asked.append(device) or 0)
    it = run(trace=trace, **VIRTIO_MMIO)
    toggle = call(lambda vcpu: it.machine.toggle_trace())
    look = mmio_read(INTERRUPT_STATUS, 4)
    rounds = [toggle, look, look, toggle, look, look, look] * 2
    it.kernel.scripts = {0: rounds[3:] if trace else rounds}
    board = it.machine.prepare()
    (thread,) = board.threads
    it()
    shown_looks, looks = (2, 8) if trace else (4, 10)
    assert (len(shown(it)), len(asked)) == (shown_looks, shown_looks)
    assert board.bus.accesses()["rng0"] == thread.exits[uapi.KVM_EXIT_MMIO] == looks
    assert it.machine.trace.summary() == [f"rng0             {shown_looks} read"]


def test_exits_have_their_own_handlers_again_once_the_trace_is_off(run):
    it = run(cpus=2)
    board = it.machine.prepare()
    own = [dict(thread.handlers) for thread in board.threads]
    it.machine.toggle_trace()
    assert all(
        thread.handlers[uapi.KVM_EXIT_MMIO] != before[uapi.KVM_EXIT_MMIO]
        for thread, before in zip(board.threads, own, strict=True)
    )
    it.machine.toggle_trace()
    assert [thread.handlers for thread in board.threads] == own
