# SPDX-License-Identifier: Apache-2.0
"""Messages into the in-kernel AIA, and doorbells out of the guest: what is asked of KVM, and when."""

import os

import pytest
from fakes.kernel import FakeKernel
from fakes.loop import FakeLoop

from pyvmm.doorbells import Doorbells
from pyvmm.errors import HostError, KvmError
from pyvmm.kvm import aia
from pyvmm.kvm.routing import GsiRouting
from pyvmm.kvm.system import Kvm
from pyvmm.messages import KernelMsiLine
from pyvmm.suspend import Suspension

PAGE = 0x2800_0000
DOORBELL = 0x4000_3000


@pytest.fixture
def vm():
    with Kvm(kernel=FakeKernel()) as kvm, kvm.create_vm() as vm, vm.create_vcpu(0):
        chip = aia.Aia(vm)
        chip.configure(sources=3, hart_bits=0, aplic=0x0C00_0000, imsics=[PAGE])
        chip.init()
        yield vm
        chip.close()


@pytest.fixture
def loop():
    return FakeLoop()


@pytest.fixture
def routing(vm):
    return GsiRouting(vm, 3)


@pytest.fixture
def make_line(vm, routing, loop):
    made = []

    def make():
        made.append(KernelMsiLine(vm, routing, loop, Suspension(lambda: False)))
        made[-1].program(PAGE, 10)
        return made[-1]

    yield make
    for line in made:
        try:
            os.fstat(line.fd)
        except OSError:
            continue
        line.close()


@pytest.fixture
def no_routes(monkeypatch):
    def refuse(*_):
        raise HostError("there is no route")

    monkeypatch.setattr(GsiRouting, "allocate", refuse)


def test_line_costs_no_route_before_it_is_opened(make_line, routing):
    line = make_line()
    assert routing.describe() == []
    line.open()
    assert routing.describe() == [{"gsi": 4, "address": PAGE, "data": 10, "irqfd": True}]
    assert line.route == "GSI 4"


def test_shut_line_keeps_its_route_and_detaches(make_line, vm):
    line = make_line()
    line.open()
    line.shut()
    assert vm.kernel.vm.irqfds == {}
    line.open()
    assert vm.kernel.vm.irqfds == {line.fd: 4}


def test_signal_to_a_shut_line_is_pending_until_it_is_cleared(make_line):
    line = make_line()
    line.signal()
    assert line.pending()
    line.clear()
    assert not line.pending()


def test_message_that_moves_to_another_hart_changes_the_route_at_once(make_line, routing):
    line = make_line()
    line.open()
    line.program(PAGE, 20)
    assert routing.describe()[0]["data"] == 20


def test_closed_line_gives_route_and_eventfd_back(make_line, routing, vm):
    line = make_line()
    line.open()
    line.close()
    assert routing.describe() == []
    assert vm.kernel.vm.irqfds == {}
    with pytest.raises(OSError):
        os.fstat(line.fd)


def test_line_without_a_route_signals_through_the_loop(make_line, no_routes, vm, loop):
    line = make_line()
    line.signal()
    line.open()
    assert line.route == "KVM_SIGNAL_MSI"
    loop.run()
    line.signal()
    loop.run()
    assert vm.kernel.vm.messages == [(PAGE, 10), (PAGE, 10)]


def test_line_without_a_route_keeps_what_comes_while_it_is_shut(make_line, no_routes, vm, loop):
    line = make_line()
    line.open()
    (watch,) = loop.watches
    line.shut()
    line.signal()
    watch.callback(1)  # the loop had seen the event before
    assert vm.kernel.vm.messages == []
    assert line.pending()


def test_event_that_comes_after_the_line_was_closed_does_nothing(make_line, no_routes, loop):
    line = make_line()
    line.open()
    (watch,) = loop.watches
    line.close()
    watch.callback(1)


def dead(*_, **__):
    raise KvmError("KVM_IRQFD", 5)


def test_line_of_a_machine_that_kvm_declared_dead_closes_its_eventfd(make_line, vm, monkeypatch):
    line = make_line()
    line.open()
    monkeypatch.setattr(type(vm), "irqfd", dead)
    line.close()
    with pytest.raises(OSError):
        os.fstat(line.fd)


def test_doorbell_is_where_it_was_placed_last(vm):
    doorbells = Doorbells(vm)
    bell = doorbells(2, None)
    bell.place(DOORBELL)
    bell.place(DOORBELL + 0x1000)
    assert doorbells.describe() == [{"address": DOORBELL + 0x1000, "size": 2, "value": None}]
    bell.place(None)
    assert doorbells.describe() == []
    bell.close()
    bell.close()


def test_doorbell_that_kvm_refuses_is_nowhere(vm):
    doorbells = Doorbells(vm)
    first, second = doorbells(4, 1), doorbells(4, 1)
    first.place(DOORBELL)
    second.place(DOORBELL)
    assert second.address is None
    first.close()
    second.close()


def test_doorbell_of_a_machine_that_kvm_declared_dead_closes_its_eventfd(vm, monkeypatch):
    bell = Doorbells(vm)(2, None)
    bell.place(DOORBELL)
    monkeypatch.setattr(type(vm), "ioeventfd", dead)
    bell.close()
    with pytest.raises(OSError):
        os.fstat(bell.fd)
