# SPDX-License-Identifier: Apache-2.0
"""Serial output without exits, on a fake KVM; what the ring holds came from the kernel's side."""

import pytest
from fakes.kernel import FakeKernel
from fakes.lines import RecordingLine, RecordingSink
from fakes.loop import FakeLoop

from pyvmm import layout
from pyvmm.devices.uart8250 import Uart8250
from pyvmm.kvm import uapi
from pyvmm.kvm.coalesced import CAPACITY
from pyvmm.kvm.system import Kvm
from pyvmm.shortcut import PACE, TICK, SerialShortcut

THR = layout.UART_BASE
IER, IIR, NOTHING, THRE = 1, 2, 1, 2
RDI, THRI = 1, 2
LCR, MCR, LSR = THR + 3, THR + 4, THR + 5
ZONE = [(THR, 1)]
MUCH = 32


class Port:
    """A serial port with its shortcut; ``posted`` are the tasks for a vCPU, which ``kick`` runs."""

    def __init__(self, capabilities=None):
        kvm = Kvm(kernel=FakeKernel(capabilities=capabilities))
        vm = kvm.create_vm()
        vcpu = vm.create_vcpu(0)
        self.opened = [kvm, vm, vcpu]
        self.kernel, self.vm = kvm.kernel, kvm.kernel.vm
        self.sink = RecordingSink()
        self.line = RecordingLine()
        self.uart = Uart8250(self.line, self.sink)
        self.loop = FakeLoop()
        self.posted = []
        self.shortcut = SerialShortcut(self.uart, THR, vm, vcpu, self.loop, self.posted.append)

    def print_much(self):
        """As many exits as it takes."""
        for _ in range(MUCH):
            self.exit_with_store(b".")
        self.loop.run()
        self.sink.data = b""

    def exit_with_store(self, byte):
        with self.uart.lock:
            self.uart.write(0, 1, byte[0])

    def store(self, data):
        """The guest stores bytes to THR; returns how many of them the kernel noted down."""
        return sum(self.vm.coalesce(THR, 1, value) for value in data)

    def kick(self):
        tasks, self.posted[:] = list(self.posted), []
        for task in tasks:
            task()

    def close(self):
        self.shortcut.close()
        for thing in reversed(self.opened):
            thing.close()


@pytest.fixture
def make_port():
    made = []

    def make(**options):
        made.append(Port(**options))
        return made[-1]

    yield make
    for it in made:
        it.close()


@pytest.fixture
def port(make_port):
    it = make_port()
    it.print_much()
    return it


def test_little_output_is_left_to_exits(make_port):
    port = make_port()
    for _ in range(MUCH - 1):
        port.exit_with_store(b".")
    port.loop.run()
    assert (port.vm.zones, port.loop.timers) == ([], [])


def test_much_output_makes_a_zone_of_the_one_register(port):
    assert port.vm.zones == ZONE


def test_stores_are_carried_out_in_order_by_whoever_comes_out(port):
    assert port.store(b"hello") == 5
    assert port.sink.data == b""
    port.shortcut.settle()
    assert port.sink.data == b"hello"


def test_nothing_to_settle_is_harmless(port, make_port):
    port.shortcut.settle()
    make_port().shortcut.settle()
    assert port.sink.data == b""


def test_vcpu_is_asked_to_come_out_for_stores_that_no_exit_brings(port):
    port.loop.advance(TICK)
    port.store(b"text")
    port.loop.advance(TICK)
    assert len(port.posted) == 1
    port.kick()
    assert port.sink.data == b"text"


def test_vcpu_that_does_not_come_out_is_asked_once(port):
    """It may wait for the console's reader, for hours, while another hart's stores are in the ring."""
    port.loop.advance(TICK)
    port.store(b"text")
    port.loop.advance(100 * TICK)
    assert len(port.posted) == 1
    port.kick()
    port.store(b", more")
    port.loop.advance(2 * TICK)
    port.kick()
    assert port.sink.data == b"text, more"


def test_vcpu_that_comes_out_by_itself_is_left_alone(port):
    for _ in range(50):
        port.store(b"a")
        port.shortcut.settle()
        port.store(b"b")
        port.loop.advance(TICK)
    assert port.posted == []


def test_zone_and_timer_go_when_nothing_is_stored(port):
    port.loop.advance(1)
    assert (port.vm.zones, port.loop.timers, port.posted) == ([], [], [])


def test_zone_stays_while_something_is_stored_now_and_then(port):
    for _ in range(20):
        port.loop.advance(8 * TICK)
        port.store(b".")
        port.shortcut.settle()
    assert port.vm.zones == ZONE


def test_zone_comes_back_with_the_next_output(port):
    port.loop.advance(1)
    port.print_much()
    assert port.vm.zones == ZONE
    port.store(b"again")
    port.loop.advance(2 * TICK)
    port.kick()
    assert port.sink.data == b"again"


def test_more_output_by_exits_changes_nothing_about_the_zone(port):
    port.print_much()
    assert (port.vm.zones, len(port.loop.timers)) == (ZONE, 1)


def test_store_into_a_full_ring_exits(port):
    assert port.store(bytes(200)) == CAPACITY - 1


@pytest.mark.parametrize(("offset", "length"), [(0, 2), (0, 8), (1, 1), (-1, 1), (-1, 4)])
def test_any_other_store_exits(port, offset, length):
    assert not port.vm.coalesce(THR + offset, length, 0)


def test_thread_that_settles_waits_for_room_with_no_lock_held(port):
    waited = []

    def wait():
        port.store(b"b")
        port.sink.after = None
        port.shortcut.settle()  # as another vCPU's thread may
        waited.append(port.uart.lock.locked())

    port.sink.after = wait
    port.store(b"a")
    port.shortcut.settle()
    assert (waited, port.sink.data) == ([False], b"ab")


def test_stores_to_the_divisor_latch_are_no_output(port):
    port.uart.write(3, 1, 0x80)
    port.store(b"\x0d")
    port.shortcut.settle()
    port.uart.write(3, 1, 0)
    assert (port.uart.DLL, port.sink.data) == (0x0D, b"")


def test_looped_back_stores_are_received(port):
    port.uart.write(2, 1, 1)
    port.uart.write(4, 1, 0x10)
    port.store(b"abc")
    port.shortcut.settle()
    assert bytes(port.uart.read(0, 1) for _ in range(3)) == b"abc"
    assert port.sink.data == b""


def cause(port):
    with port.uart.lock:
        return port.uart.read(IIR, 1) & 15


def enable(port, interrupts):
    with port.uart.lock:
        port.uart.write(IER, 1, interrupts)


def test_driver_that_begins_to_send_is_interrupted_when_it_has_had_time_for_more(port):
    enable(port, RDI | THRI)
    assert (port.line.level, cause(port)) == (False, NOTHING)
    enable(port, RDI)
    enable(port, RDI | THRI)  # it does not have to wait anew
    port.loop.advance(PACE)
    assert (port.line.level, cause(port)) == (True, THRE)
    port.store(b"all that there is")
    port.shortcut.settle()
    assert (port.line.level, cause(port)) == (True, THRE)


def test_driver_is_interrupted_at_once_without_much_output(make_port):
    port = make_port()
    enable(port, RDI | THRI)
    assert cause(port) == THRE
    enable(port, RDI)
    port.print_much()
    enable(port, RDI | THRI)
    port.shortcut.close()
    port.loop.advance(PACE)
    assert cause(port) == THRE  # also of a wait that began before
    enable(port, RDI)
    enable(port, RDI | THRI)
    assert cause(port) == THRE


def test_driver_that_tests_the_interrupt_finds_it_at_once(port):
    """Linux takes a port for a broken one when it does not, and sends in a way of its own from then on."""
    enable(port, RDI | THRI)
    enable(port, THRI)
    assert cause(port) == NOTHING  # it was on before
    enable(port, 0)
    enable(port, THRI)
    assert (port.line.level, cause(port)) == (True, THRE)


def test_line_status_is_answered_while_it_is_known(port):
    assert port.shortcut.answers == {LSR: 0x60}
    port.uart.write(4, 1, 0x10)
    assert port.shortcut.answers == {}


def test_closed_shortcut_sees_to_what_was_stored_and_makes_no_zone(port):
    port.store(b"last")
    port.shortcut.close()
    port.kick()
    assert (port.sink.data, port.vm.zones) == (b"last", [])
    port.print_much()
    port.loop.advance(1)
    assert (port.vm.zones, port.loop.timers) == ([], [])


def test_watched_stores_exit_until_no_watcher_is_left(port):
    port.store(b"before")
    for watcher in ("one", "another"):
        port.shortcut.stop(watcher)
    port.kick()
    assert (port.sink.data, port.vm.zones) == (b"before", [])
    port.shortcut.resume("one")
    port.print_much()
    assert port.vm.zones == []
    port.shortcut.resume("another")
    port.print_much()
    assert port.vm.zones == ZONE
    port.store(b"after")
    port.loop.advance(2 * TICK)
    port.kick()
    assert port.sink.data == b"after"


def test_zone_that_comes_back_at_once_is_looked_at_once_a_tick(port):
    port.shortcut.stop("a trace")
    port.shortcut.resume("a trace")
    port.print_much()
    assert (port.vm.zones, len(port.loop.timers)) == (ZONE, 1)
    port.loop.advance(1)
    assert (port.vm.zones, port.loop.timers) == ([], [])
    port.print_much()
    assert (port.vm.zones, len(port.loop.timers)) == (ZONE, 1)


def test_kernel_without_coalesced_zones_goes_on_with_exits(make_port):
    port = make_port(capabilities={uapi.KVM_CAP_COALESCED_MMIO: 0})
    port.print_much()
    port.shortcut.settle()
    assert (port.vm.zones, port.loop.timers) == ([], [])
    assert port.shortcut.answers == {LSR: 0x60}


def test_zone_that_the_kernel_refuses_is_asked_for_once(make_port):
    port = make_port()
    port.kernel.capabilities[uapi.KVM_CAP_COALESCED_MMIO] = 0
    for _ in range(3):
        port.print_much()
    assert port.kernel.calls.count("KVM_REGISTER_COALESCED_MMIO") == 1
