# SPDX-License-Identifier: Apache-2.0
"""What can be asked of a running machine, on a fake KVM. Pausing has a file of its own."""

import threading
from queue import SimpleQueue

import pytest
from fakes.guests import IER, idle
from fakes.kernel import call, mmio_read, mmio_write
from fakes.threads import PATIENCE, Background, happens, in_time

from pyvmm import frontpanel, layout
from pyvmm.devices.virtio import bits
from pyvmm.errors import MachineError
from pyvmm.kvm import regs

MAGIC, STATUS, FEATURES_SELECT, FEATURES = (layout.POWER_BASE + at for at in (0, 0x70, 0x24, 0x20))


@pytest.fixture
def idler(run):
    """A started machine whose guest does ``script``, then nothing."""

    def start(*script, **config):
        it = run([*script, idle], **config)
        it.start()
        return it

    return start


def test_registers_are_those_of_the_cpu_by_name(idler):
    it = idler(call(lambda vcpu: vcpu.registers.update({regs.csr("scause"): 13})))
    found = in_time(it.machine.registers)
    assert found["pc"] == layout.RAM_BASE + 0x20_0000
    assert found["a0"] == 0
    while found["scause"] != 13:
        found = in_time(it.machine.registers)


def test_cpu_that_is_not_there_is_one_sentence(idler):
    it = idler(cpus=2)
    with pytest.raises(MachineError, match="has no CPU 2: its CPUs are 0 to 1"):
        it.machine.registers(2)


def test_memory_is_read_and_what_is_none_is_one_sentence(idler):
    it = idler()
    assert it.machine.read_memory(layout.RAM_BASE + 0x20_0038, 4) == b"RSC\x05"
    for address, length in ((0, 4), (layout.RAM_BASE + (16 << 20) - 1, 2), (2**64 - 1, 16)):
        with pytest.raises(
            MachineError, match="not all in the guest's memory, which is 0x80000000 to 0x80ffffff"
        ):
            it.machine.read_memory(address, length)


def test_exits_and_accesses_are_counted(idler):
    it = idler(mmio_read(IER, 1), mmio_read(IER, 1), mmio_read(layout.RTC_BASE, 4))
    found = it.machine.inspect()
    while found["exits"].get("mmio") != 3 or not found["accesses"]["rtc"]:  # an exit counts before its access
        found = it.machine.inspect()
    assert found["accesses"]["uart"] == 2
    assert found["accesses"]["rtc"] == 1
    assert found["state"] == "running"
    before, found, after = it.machine.uptime, it.machine.inspect(), it.machine.uptime
    assert round(before, 3) <= found["uptime"] <= round(after, 3)


def test_guest_without_a_balloon_says_so(idler):
    it = idler()
    with pytest.raises(MachineError, match=r"has no balloon; start it with --balloon\."):
        it.machine.balloon()
    with pytest.raises(MachineError, match="has no balloon"):
        it.machine.set_balloon(0)


def test_balloon_is_asked_for_and_shown(idler):
    it = idler(balloon=True)
    it.machine.set_balloon(1 << 20)
    assert it.machine.balloon() == {"wanted": 1 << 20, "actual": 0, "statistics": {}}
    with pytest.raises(MachineError, match=r"take from 0 to 16M from this guest, not 16388K\."):
        it.machine.set_balloon((16 << 20) + 4096)


def test_guest_that_does_not_say_how_its_memory_is_holds_up_only_who_asked(idler, monkeypatch):
    it = idler(balloon=True)
    asked, answers = threading.Event(), []
    balloon = next(device for device in it.machine._board.devices if device.NAME == "balloon")

    def keep_silent(callback):
        answers.append(callback)
        asked.set()
        return True

    monkeypatch.setattr(balloon, "request_stats", keep_silent)
    monkeypatch.setattr(frontpanel, "_FRESH", PATIENCE)
    asking = Background(it.machine.balloon)
    happens(asked)
    in_time(it.machine.pause)
    assert asking.thread.is_alive()
    answers[0]({})
    assert asking.result()["statistics"] == {}


def test_guest_that_does_not_watch_its_power_key_says_so(idler):
    it = idler()
    with pytest.raises(MachineError, match="does not watch its power key"):
        it.machine.power_button()


def test_power_key_is_made_when_the_guest_looks_and_heard_once_it_has_a_driver(idler):
    steps = (bits.ACKNOWLEDGE, bits.DRIVER, bits.FEATURES_OK, bits.DRIVER_OK)
    status = [sum(steps[: count + 1]) for count in range(4)]
    it = idler(
        mmio_read(MAGIC, 4),
        mmio_write(STATUS, 4, status[0]),
        mmio_write(STATUS, 4, status[1]),
        mmio_write(FEATURES_SELECT, 4, 1),
        mmio_write(FEATURES, 4, 1 << (bits.F_VERSION_1 - 32)),
        mmio_write(STATUS, 4, status[2]),
        mmio_write(STATUS, 4, status[3]),
        mmio_read(STATUS, 4),
    )
    answers = it.kernel.vm.vcpus[0].answers
    while len(answers) < 2:
        in_time(it.machine.registers)
    assert answers == [0x7472_6976, 0xF]
    it.machine.power_button()


def test_trace_names_the_power_keys_registers_from_the_first_access_on(idler):
    it = idler(mmio_write(STATUS, 4, 1), mmio_read(MAGIC, 4), trace="mmio")
    while len(it.trace) < 2:
        in_time(it.machine.registers)
    assert [line.split()[3] for line in it.trace] == ["power.STATUS", "power.MAGIC_VALUE"]


@pytest.fixture
def typist(idler):
    """A machine, and what its serial port was given so far."""
    it = idler(mmio_write(layout.UART_BASE + 1, 1, 1))
    taken = []
    uart = it.machine._board._uart
    receive, uart.receive = uart.receive, lambda data: (taken.append(data), receive(data))[1]
    send_break, uart.send_break = uart.send_break, lambda: (taken.append("break"), send_break())[1]
    return it, taken


def test_sysrq_is_a_break_and_the_key(typist):
    it, taken = typist
    it.machine.sysrq("b")
    while b"b" not in taken:
        in_time(it.machine.registers)
    assert taken.index("break") < taken.index(b"b")


def test_nothing_that_others_type_comes_between_a_break_and_its_key(typist, monkeypatch):
    it, taken = typist
    call_soon = it.machine._loop.call_soon

    def while_somebody_types(callback):
        call_soon(callback)
        call_soon(lambda: it.machine._input._insert(b"x"))

    with monkeypatch.context() as patch:
        patch.setattr(it.machine._loop, "call_soon", while_somebody_types)
        it.machine.sysrq("b")
    while b"b" not in taken:
        in_time(it.machine.registers)
    assert taken[taken.index(b"b") - 1] == "break"


def test_sysrq_is_taken_when_the_guest_has_its_key(typist):
    it, taken = typist
    it.machine._board._uart.receive = lambda data: (taken.append(data), len(data))[1]
    had = SimpleQueue()
    it.machine.sysrq("b", lambda: had.put(list(taken)))
    assert had.get(timeout=PATIENCE)[-1] == b"b"


def test_sysrq_needs_a_console_with_a_break(idler):
    it = idler(console="none")
    with pytest.raises(MachineError, match="--console virtio or serial"):
        it.machine.sysrq("b")
