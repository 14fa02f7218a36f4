# SPDX-License-Identifier: Apache-2.0
import errno

import pytest

from pyvmm.errors import KvmError
from pyvmm.kvm import uapi

PAGE = 4096
HOST = 0x7F00_0000_0000


def test_set_region_with_the_capability_uses_the_second_form(machine):
    vm = machine()
    vm.set_user_memory_region(0, 0x8000_0000, PAGE, HOST)
    assert vm.kernel.calls[-1] == "KVM_SET_USER_MEMORY_REGION2"
    slot = vm.kernel.vm.slots[0]
    assert (slot.gpa, slot.size, slot.host_address) == (0x8000_0000, PAGE, HOST)


def test_set_region_without_the_capability_uses_the_first_form(machine):
    vm = machine(capabilities={uapi.KVM_CAP_USER_MEMORY2: 0})
    vm.set_user_memory_region(0, 0x8000_0000, PAGE, HOST, uapi.KVM_MEM_READONLY)
    assert vm.kernel.calls[-1] == "KVM_SET_USER_MEMORY_REGION"
    assert vm.kernel.vm.slots[0].flags == uapi.KVM_MEM_READONLY


def test_set_region_that_overlaps_names_both_slots(machine):
    vm = machine()
    vm.set_user_memory_region(3, 0x1000, 2 * PAGE, HOST)
    with pytest.raises(KvmError) as caught:
        vm.set_user_memory_region(4, 0x2000, PAGE, HOST)
    assert caught.value.errno == errno.EEXIST
    assert caught.value.hint == "slot 4 [0x2000..0x2fff] overlaps slot 3 [0x1000..0x2fff]"


def test_set_region_above_the_guest_physical_range_names_its_bits(machine):
    vm = machine(capabilities={uapi.KVM_CAP_VM_GPA_BITS: 41})
    with pytest.raises(KvmError, match="41-bit guest-physical"):
        vm.set_user_memory_region(0, 1 << 41, PAGE, HOST)


def test_set_region_of_half_a_page_says_what_is_wrong(machine):
    with pytest.raises(KvmError, match="multiples of 4 KiB"):
        machine().set_user_memory_region(0, 0x800, PAGE, HOST)


def test_set_region_that_resizes_a_slot_says_delete_it_first(machine):
    vm = machine()
    vm.set_user_memory_region(0, 0, PAGE, HOST)
    with pytest.raises(KvmError, match="delete it first"):
        vm.set_user_memory_region(0, 0, 2 * PAGE, HOST)


def test_move_keeps_size_host_address_and_flags(machine):
    vm = machine()
    vm.set_user_memory_region(1, 0x1000, PAGE, HOST, uapi.KVM_MEM_READONLY)
    vm.move_user_memory_region(1, 0x9000)
    slot = vm.kernel.vm.slots[1]
    assert (slot.gpa, slot.size, slot.host_address, slot.flags) == (0x9000, PAGE, HOST, uapi.KVM_MEM_READONLY)


def test_delete_frees_the_slot_for_another_size(machine):
    vm = machine()
    vm.set_user_memory_region(1, 0x1000, PAGE, HOST)
    vm.delete_user_memory_region(1)
    assert vm.kernel.vm.slots == {}
    vm.set_user_memory_region(1, 0x1000, 2 * PAGE, HOST)


def test_delete_of_a_slot_that_is_not_there_says_so(machine):
    with pytest.raises(KvmError, match="there is no memory slot 5"):
        machine().delete_user_memory_region(5)


def test_dirty_log_is_a_bitmap_and_reading_clears_it(machine):
    vm = machine()
    vm.set_user_memory_region(0, 0, 100 * PAGE, HOST, uapi.KVM_MEM_LOG_DIRTY_PAGES)
    vm.kernel.vm.slots[0].dirty = 1 << 99 | 1 << 1
    assert vm.get_dirty_log(0, 100) == 1 << 99 | 1 << 1
    assert vm.get_dirty_log(0, 100) == 0


def test_dirty_log_of_a_slot_without_one_says_so(machine):
    vm = machine()
    vm.set_user_memory_region(0, 0, PAGE, HOST)
    with pytest.raises(KvmError, match="no dirty log"):
        vm.get_dirty_log(0, 1)


def test_clear_dirty_log_clears_the_pages_named(machine):
    vm = machine()
    vm.set_user_memory_region(0, 0, 128 * PAGE, HOST, uapi.KVM_MEM_LOG_DIRTY_PAGES)
    vm.kernel.vm.slots[0].dirty = 1 << 70 | 1 << 64 | 1
    vm.clear_dirty_log(0, 64, 64, 1 << 6)
    assert vm.kernel.vm.slots[0].dirty == 1 << 64 | 1


def test_create_vcpu_twice_with_one_id_says_so(machine):
    vm = machine()
    with vm.create_vcpu(0), pytest.raises(KvmError, match="already has a vCPU"):
        vm.create_vcpu(0)


def test_create_vcpu_beyond_the_limit_names_it(machine):
    with pytest.raises(KvmError, match="KVM_CAP_MAX_VCPUS"):
        machine().create_vcpu(1024)


def test_irq_line_without_an_irqchip_says_so(machine):
    with pytest.raises(KvmError, match="no in-kernel interrupt controller"):
        machine().irq_line(1, True)


def test_signal_msi_without_an_irqchip_says_so(machine):
    with pytest.raises(KvmError, match="no in-kernel AIA"):
        machine().signal_msi(0x2800_0000, 1)


def test_irqfd_assigns_and_deassigns(machine):
    vm = machine()
    vm.irqfd(9, 40)
    assert vm.kernel.vm.irqfds == {9: 40}
    vm.irqfd(9, 40, deassign=True)
    assert vm.kernel.vm.irqfds == {}


def test_irqfd_with_an_eventfd_in_use_says_so(machine):
    vm = machine()
    vm.irqfd(9, 40)
    with pytest.raises(KvmError, match="already serves another"):
        vm.irqfd(9, 41)


def test_ioeventfd_with_a_value_signals_only_for_it(machine):
    vm = machine()
    fd = vm.kernel.eventfd()
    vm.ioeventfd(fd, 0x1000_0050, 4, datamatch=0)
    fake = vm.kernel.vm
    assert [fake.guest_store(0x1000_0050, 4, value) for value in (0, 1)] == [True, False]
    vm.kernel.close(fd)


def test_ioeventfd_taken_twice_says_so_and_can_be_taken_back(machine):
    vm = machine()
    vm.ioeventfd(9, 0x1000, 4)
    with pytest.raises(KvmError, match="another eventfd waits"):
        vm.ioeventfd(10, 0x1000, 4)
    vm.ioeventfd(9, 0x1000, 4, deassign=True)
    assert vm.kernel.vm.ioeventfds == {}


def test_ioeventfd_of_any_length_with_a_value_is_refused(machine):
    with pytest.raises(KvmError, match="0 cannot be combined"):
        machine().ioeventfd(9, 0x1000, 0, datamatch=1)


def test_coalesced_zone_is_registered_and_taken_back(machine):
    vm = machine()
    vm.register_coalesced_mmio(0x1000_0000, 1)
    assert vm.kernel.vm.zones == [(0x1000_0000, 1)]
    vm.unregister_coalesced_mmio(0x1000_0000, 1)
    assert vm.kernel.vm.zones == []


def test_enable_cap_passes_its_arguments(machine):
    vm = machine()
    vm.enable_cap(uapi.KVM_CAP_VM_GPA_BITS, 41)
    assert vm.kernel.vm.enabled == [(uapi.KVM_CAP_VM_GPA_BITS, 41, 0, 0, 0)]


def test_has_device_without_aia_is_false_and_creates_nothing(machine):
    vm = machine(capabilities={uapi.KVM_CAP_IRQCHIP: 0})
    assert not vm.has_device(uapi.KVM_DEV_TYPE_RISCV_AIA)
    with pytest.raises(KvmError, match="no such in-kernel device"):
        vm.create_device(uapi.KVM_DEV_TYPE_RISCV_AIA)
