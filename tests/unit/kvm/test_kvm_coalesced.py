# SPDX-License-Identifier: Apache-2.0
import ctypes

import pytest

from pyvmm.kvm.coalesced import CAPACITY, CoalescedRing

UART = 0x1000_0000


def load(address):
    return ctypes.c_uint32.from_address(address).value


def store(address, value):
    ctypes.c_uint32.from_address(address).value = value


@pytest.fixture
def zone(machine):
    """(fake machine with a zone of 8 bytes, ring reader)."""
    vm = machine()
    vm.register_coalesced_mmio(UART, 8)
    with vm.create_vcpu(0) as vcpu:
        yield vm.kernel.vm, CoalescedRing(vcpu.ring_address, load, store)


def test_capacity_is_what_the_kernel_has_in_a_page():
    assert CAPACITY == 170


def test_empty_until_the_guest_stores(zone):
    vm, ring = zone
    assert ring.empty()
    vm.guest_store(UART, 1, 0x41)
    assert not ring.empty()


def test_drain_gives_stores_in_order_cut_to_their_length(zone):
    vm, ring = zone
    vm.guest_store(UART, 1, 0x41)
    vm.guest_store(UART + 4, 4, 0x8899_AABB)
    vm.guest_store(UART, 1, 0xFFFF_FF42)
    assert list(ring.drain()) == [(UART, 1, 0x41), (UART + 4, 4, 0x8899_AABB), (UART, 1, 0x42)]
    assert ring.empty()


def test_drain_goes_around_the_end_of_the_page(zone):
    vm, ring = zone
    values = iter(range(1000))
    seen = []
    for _ in range(5):
        for _ in range(100):
            assert vm.guest_store(UART, 4, next(values))
        seen.extend(value for _, _, value in ring.drain())
    assert seen == list(range(500))


def test_full_ring_refuses_a_store_until_it_is_drained(zone):
    vm, ring = zone
    taken = [vm.guest_store(UART, 1, 0) for _ in range(CAPACITY)]
    assert taken == [True] * (CAPACITY - 1) + [False]
    assert len(list(ring.drain())) == CAPACITY - 1
    assert vm.guest_store(UART, 1, 0)


def test_drain_ends_although_the_guest_goes_on_storing(zone):
    vm, ring = zone
    vm.guest_store(UART, 1, 1)
    taken = []
    for entry in ring.drain():
        taken.append(entry)
        vm.guest_store(UART, 1, 2)
    assert len(taken) == 1
    assert not ring.empty()


def test_entry_stays_in_the_ring_while_it_is_being_carried_out(zone):
    vm, ring = zone
    vm.guest_store(UART, 1, 1)
    assert [ring.empty() for _ in ring.drain()] == [False]
    assert ring.empty()
