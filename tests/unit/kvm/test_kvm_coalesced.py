# SPDX-License-Identifier: Apache-2.0
import ctypes

import pytest

from pyvmm.kvm.coalesced import CAPACITY, FIRST, LAST, CoalescedRing

UART = 0x1000_0000


def load(address):
    return ctypes.c_uint32.from_address(address).value


def store(address, value):
    ctypes.c_uint32.from_address(address).value = value


class Zone:
    """A zone of one byte, and the ring behind it; ``drain`` returns what was in it."""

    def __init__(self, vm, vcpu):
        self.vm = vm.kernel.vm
        self.ring = CoalescedRing(vcpu.ring_address, load, store)
        vm.register_coalesced_mmio(UART, 1)

    def store(self, value):
        return self.vm.guest_store(UART, 1, value)

    def drain(self):
        return self.ring.drain(lambda data: data)

    @property
    def empty(self):
        return self.ring.page[FIRST] == self.ring.page[LAST]


@pytest.fixture
def zone(machine):
    vm = machine()
    with vm.create_vcpu(0) as vcpu:
        yield Zone(vm, vcpu)


def test_capacity_is_what_the_kernel_has_in_a_page():
    assert CAPACITY == 170


def test_indices_fit_into_the_byte_that_is_looked_at():
    assert CAPACITY <= 256


def test_empty_until_the_guest_stores(zone):
    assert zone.empty
    zone.store(0x41)
    assert not zone.empty


def test_empty_ring_calls_nobody(zone):
    assert zone.ring.drain(pytest.fail) is None


def test_drain_gives_stores_in_order_cut_to_a_byte(zone):
    for value in (0x41, 0, 0xFFFF_FF42):
        zone.store(value)
    assert zone.drain() == b"A\0B"
    assert zone.empty


def test_drain_goes_around_the_end_of_the_page(zone):
    values = bytes(range(250)) * 4
    seen = b""
    for at in range(0, len(values), 100):
        for value in values[at : at + 100]:
            assert zone.store(value)
        seen += zone.drain()
    assert seen == values


@pytest.mark.parametrize("turn", [0, 1, CAPACITY - 1])
def test_full_ring_refuses_a_store_until_it_is_drained(zone, turn):
    for _ in range(turn):
        zone.store(0)
        zone.drain()
    taken = [zone.store(number) for number in range(CAPACITY)]
    assert taken == [True] * (CAPACITY - 1) + [False]
    assert zone.drain() == bytes(range(CAPACITY - 1))
    assert zone.store(1)


def test_drain_ends_although_the_guest_goes_on_storing(zone):
    zone.store(1)
    seen = []

    def carry_out(data):
        seen.append(data)
        zone.store(2)

    zone.ring.drain(carry_out)
    assert seen == [b"\1"]
    assert zone.drain() == b"\2"


def test_stores_stay_in_the_ring_while_they_are_carried_out(zone):
    zone.store(1)
    assert zone.ring.drain(lambda data: zone.empty) is False
    assert zone.empty
