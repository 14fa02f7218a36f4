# SPDX-License-Identifier: Apache-2.0
import threading

import pytest

from pyvmm.errors import HostError
from pyvmm.kvm import aia, uapi
from pyvmm.kvm.routing import GsiRouting

PIN, MSI = uapi.KVM_IRQ_ROUTING_IRQCHIP, uapi.KVM_IRQ_ROUTING_MSI
PAGE = 0x2800_0000


@pytest.fixture
def vm(machine):
    vm = machine()
    vm.create_vcpu(0)
    chip = aia.Aia(vm)
    chip.configure(sources=3, hart_bits=0, aplic=0x0C00_0000, imsics=[PAGE])
    chip.init()
    return vm


def commits(vm):
    return vm.kernel.calls.count("KVM_SET_GSI_ROUTING")


def test_allocate_tells_the_kernel_nothing(vm):
    routing = GsiRouting(vm, 3)
    assert [routing.allocate(PAGE, 10), routing.allocate(PAGE, 11)] == [4, 5]
    assert commits(vm) == 0


def test_attach_commits_once_and_keeps_the_pins(vm):
    routing = GsiRouting(vm, 3)
    first, second = routing.allocate(PAGE, 10), routing.allocate(1 << 32 | PAGE, 11)
    routing.attach(first, 50)
    routing.attach(second, 51)
    assert commits(vm) == 1
    pins = [(pin, PIN, pin) for pin in range(4)]
    assert vm.kernel.vm.routes == [*pins, (first, MSI, PAGE, 10), (second, MSI, 1 << 32 | PAGE, 11)]
    assert vm.kernel.vm.irqfds == {50: first, 51: second}


def test_update_of_an_attached_route_takes_effect_at_once(vm):
    routing = GsiRouting(vm, 3)
    gsi = routing.allocate(PAGE, 10)
    routing.attach(gsi, 50)
    routing.update(gsi, PAGE, 20)
    assert vm.kernel.vm.routes[-1] == (gsi, MSI, PAGE, 20)


def test_update_of_an_idle_route_waits(vm):
    routing = GsiRouting(vm, 3)
    gsi = routing.allocate(PAGE, 10)
    routing.update(gsi, PAGE, 20)
    assert commits(vm) == 0
    routing.commit()
    assert vm.kernel.vm.routes[-1] == (gsi, MSI, PAGE, 20)


def test_update_to_the_same_message_costs_nothing(vm):
    routing = GsiRouting(vm, 3)
    gsi = routing.allocate(PAGE, 10)
    routing.attach(gsi, 50)
    routing.update(gsi, PAGE, 10)
    routing.commit()
    assert commits(vm) == 1


def test_free_while_attached_is_refused(vm):
    routing = GsiRouting(vm, 3)
    gsi = routing.allocate(PAGE, 10)
    routing.attach(gsi, 50)
    with pytest.raises(ValueError, match="still has an eventfd"):
        routing.free(gsi)


def test_free_after_detach_lets_the_number_be_used_again(vm):
    routing = GsiRouting(vm, 3)
    gsi = routing.allocate(PAGE, 10)
    routing.attach(gsi, 50)
    routing.detach(gsi, 50)
    routing.free(gsi)
    assert vm.kernel.vm.irqfds == {}
    assert routing.allocate(PAGE, 11) == gsi


def test_allocate_beyond_the_limit_says_so(machine):
    vm = machine(capabilities={uapi.KVM_CAP_IRQ_ROUTING: 6})
    routing = GsiRouting(vm, 3)
    routing.allocate(PAGE, 1)
    routing.allocate(PAGE, 2)
    with pytest.raises(HostError, match="all 6 interrupt routes"):
        routing.allocate(PAGE, 3)


def test_without_sources_there_are_no_pins(vm):
    routing = GsiRouting(vm, 0)
    gsi = routing.allocate(PAGE, 9)
    routing.commit()
    assert vm.kernel.vm.routes == [(gsi, MSI, PAGE, 9)]


def test_allocate_from_many_threads_gives_every_number_once(vm):
    routing = GsiRouting(vm, 3)
    numbers = []

    def work():
        numbers.extend(routing.allocate(PAGE, 1) for _ in range(100))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(4, 404))
