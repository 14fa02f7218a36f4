# SPDX-License-Identifier: Apache-2.0
"""Memory slots on real KVM."""

import errno
import os
import re
import subprocess
from pathlib import Path

import pytest
from handmade import RAM, RAM_SIZE

from pyvmm.errors import ConfigError, KvmError
from pyvmm.kvm import uapi
from pyvmm.memory import MEMFD, READ_ONLY, GuestMemory

pytestmark = pytest.mark.kvm

PAGE, HUGE = 4096, 2 << 20
OTHER = 0x9000_0000


@pytest.fixture
def add(guest):
    """Adds a bank as slot 1."""

    def add(size=4 * PAGE, flags=0, base=OTHER, **options):
        bank = guest.memory.add(base, size, **options)
        guest.vm.set_user_memory_region(1, base, size, bank.host_address, flags)
        return bank

    return add


def test_overlapping_slot_names_the_other_one(guest):
    with pytest.raises(KvmError) as caught:
        guest.vm.set_user_memory_region(1, RAM + PAGE, PAGE, guest.memory.host_address(RAM, PAGE))
    assert caught.value.errno == errno.EEXIST
    assert f"overlaps slot 0 [0x{RAM:x}..0x{RAM + RAM_SIZE - 1:x}]" in caught.value.hint


def test_slot_beyond_the_guest_physical_range_names_its_bits(guest):
    bits = guest.vm.check_extension(uapi.KVM_CAP_VM_GPA_BITS)
    with pytest.raises(KvmError, match=f"{bits}-bit") as caught:
        guest.vm.set_user_memory_region(1, 1 << bits, PAGE, guest.memory.host_address(RAM, PAGE))
    assert caught.value.errno == errno.EFAULT


def test_slot_that_changes_its_size_is_refused(guest, add):
    bank = add()
    with pytest.raises(KvmError, match="delete it first"):
        guest.vm.set_user_memory_region(1, OTHER, PAGE, bank.host_address)


@pytest.mark.parametrize("memory2", [True, False])
def test_both_forms_of_the_ioctl_give_the_guest_memory(guest, memory2):
    if memory2:
        assert guest.vm.check_extension(uapi.KVM_CAP_USER_MEMORY2)
    guest.vm._has_memory2 = memory2
    bank = guest.memory.add(OTHER, PAGE)
    guest.vm.set_user_memory_region(1, OTHER, PAGE, bank.host_address)
    guest.memory.write(OTHER, b"\x2a")
    guest.code.li("t1", OTHER)
    guest.code.ld("a1", 0, "t1")
    guest.code.sd("a1", 0, "t0")
    guest.start()
    assert guest.run_to_store() == (0, 8, 42)


def test_memfd_memory_is_what_the_guest_writes(guest, add):
    bank = add(backing=MEMFD)
    guest.code.li("t1", OTHER + PAGE)
    guest.code.sd("t1", 0, "t1")
    guest.code.sd("a1", 0, "t0")
    guest.start()
    guest.run_to_store()
    assert bank.view[PAGE : PAGE + 8] == (OTHER + PAGE).to_bytes(8, "little")


def anonymous_huge_pages(address):
    """KiB of transparent huge pages in the mapping that holds ``address``."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        span = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if span:
            inside = int(span[1], 16) <= address < int(span[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1])
    return 0


def test_memory_that_the_guest_touches_comes_in_huge_pages(guest, add):
    if "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        pytest.skip("this host has transparent huge pages turned off")
    bank = add(size=4 * HUGE)
    for page in range(4):
        guest.code.li("t1", OTHER + page * HUGE + PAGE)
        guest.code.sd("t1", 0, "t1")
    guest.code.sd("a1", 0, "t0")
    guest.start()
    guest.run_to_store()
    assert anonymous_huge_pages(bank.host_address) == 4 * HUGE >> 10


@pytest.fixture
def hugetlbfs(tmp_path):
    """A hugetlbfs mount with two pages of 2 MiB."""
    pool = Path("/proc/sys/vm/nr_hugepages")
    if os.geteuid() or not pool.exists():
        pytest.skip("needs root and a kernel with huge pages")
    before = pool.read_text()
    pool.write_text("2")
    subprocess.run(["mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "none", str(tmp_path)], check=True)
    yield str(tmp_path)
    subprocess.run(["umount", str(tmp_path)], check=True)
    pool.write_text(before)


def test_hugetlbfs_memory_is_what_the_guest_writes(hugetlbfs, guest):
    with GuestMemory() as huge:
        bank = huge.add(OTHER, HUGE, backing=hugetlbfs)
        assert bank.host_address % HUGE == 0
        guest.vm.set_user_memory_region(1, OTHER, HUGE, bank.host_address)
        guest.code.li("t1", OTHER + HUGE - 8)
        guest.code.sd("t1", 0, "t1")
        guest.code.sd("a1", 0, "t0")
        guest.start()
        guest.run_to_store()
        assert bank.view[HUGE - 8 : HUGE] == (OTHER + HUGE - 8).to_bytes(8, "little")
        guest.vm.delete_user_memory_region(1)


def test_hugetlbfs_with_too_few_pages_says_who_cannot_give_them(hugetlbfs):
    with GuestMemory() as huge, pytest.raises(ConfigError, match=f"{hugetlbfs} cannot give 16 MiB"):
        huge.add(OTHER, 8 * HUGE, backing=hugetlbfs)


def test_read_only_slot_gives_loads_memory_and_makes_stores_exit(guest, add):
    bank = add(flags=uapi.KVM_MEM_READONLY, kind=READ_ONLY)
    bank.view[0] = 7
    guest.code.li("t1", OTHER)
    guest.code.lbu("a1", 0, "t1")
    guest.code.sd("a1", 0, "t0")
    guest.code.sb("a1", 1, "t1")
    guest.start()
    assert guest.run_to_store() == (0, 8, 7)
    assert guest.cpu.run() == uapi.KVM_EXIT_MMIO
    assert guest.cpu.mmio() == (OTHER + 1, 1, True, 7)
    assert bank.view[1] == 0


def loads_twice(guest, first, second):
    """A guest that loads from two addresses, with a store to the device after each."""
    for address in (first, second):
        guest.code.li("t1", address)
        guest.code.lbu("a1", 0, "t1")
        guest.code.sd("a1", 0, "t0")
    guest.start()


def test_deleted_slot_is_gone_for_the_guest(guest, add):
    add()
    loads_twice(guest, OTHER, OTHER)
    guest.run_to_store()
    guest.vm.delete_user_memory_region(1)
    assert guest.cpu.run() == uapi.KVM_EXIT_MMIO
    assert guest.cpu.mmio() == (OTHER, 1, False, 0)


def test_moved_slot_has_its_contents_at_the_new_address_only(guest, add):
    add()
    guest.memory.write(OTHER, b"\x09")
    guest.vm.move_user_memory_region(1, OTHER + 0x100_0000)
    loads_twice(guest, OTHER + 0x100_0000, OTHER)
    assert guest.run_to_store() == (0, 8, 9)
    assert guest.cpu.run() == uapi.KVM_EXIT_MMIO
    assert guest.cpu.mmio() == (OTHER, 1, False, 0)


def test_dirty_log_has_the_pages_the_guest_wrote_since_the_last_time(guest, add):
    add(size=100 * PAGE, flags=uapi.KVM_MEM_LOG_DIRTY_PAGES)
    for page in (1, 70, 1):
        guest.code.li("t1", OTHER + page * PAGE)
        guest.code.sd("t1", 0, "t1")
        guest.code.sd("a1", 0, "t0")
    guest.start()
    guest.run_to_store()
    guest.run_to_store()
    assert guest.vm.get_dirty_log(1, 100) == 1 << 1 | 1 << 70
    assert guest.vm.get_dirty_log(1, 100) == 0
    guest.run_to_store()
    assert guest.vm.get_dirty_log(1, 100) == 1 << 1


def test_manual_dirty_log_stays_until_it_is_cleared(guest, add):
    guest.vm.enable_cap(uapi.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, uapi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE)
    add(size=128 * PAGE, flags=uapi.KVM_MEM_LOG_DIRTY_PAGES)
    guest.code.li("t1", OTHER + 65 * PAGE)
    guest.code.sd("t1", 0, "t1")
    guest.code.sd("a1", 0, "t0")
    guest.start()
    guest.run_to_store()
    assert guest.vm.get_dirty_log(1, 128) == guest.vm.get_dirty_log(1, 128) == 1 << 65
    guest.vm.clear_dirty_log(1, 64, 64, 1 << 1)
    assert guest.vm.get_dirty_log(1, 128) == 0


def test_dirty_log_of_a_slot_without_one_says_so(guest, add):
    add()
    with pytest.raises(KvmError, match="no dirty log"):
        guest.vm.get_dirty_log(1, 4)


def test_memory_is_usable_again_after_the_machine_is_gone(guest, add):
    add()
    guest.vm.delete_user_memory_region(1)
    guest.memory.write(OTHER, b"still here")
    assert guest.memory.read(OTHER, 10) == b"still here"
