# SPDX-License-Identifier: Apache-2.0
import ctypes
import errno
import os

import pytest

from pyvmm import memory
from pyvmm.errors import ConfigError, GuestAccessError, HostError
from pyvmm.memory import ANONYMOUS, DEVICE, MEMFD, RAM, READ_ONLY, GuestMemory

BASE = 0x8000_0000
PAGE = 4096
MIB = 1 << 20


@pytest.fixture
def mem():
    """Two adjacent banks of RAM, a hole, then read-only memory."""
    with GuestMemory() as mem:
        mem.add(BASE, 4 * PAGE)
        mem.add(BASE + 4 * PAGE, 4 * PAGE, backing=MEMFD)
        mem.add(BASE + 16 * PAGE, 2 * PAGE, kind=READ_ONLY)
        yield mem


def test_new_memory_reads_zero(mem):
    assert mem.read(BASE, 8 * PAGE) == bytes(8 * PAGE)


def test_write_then_read_gives_the_data(mem):
    mem.write(BASE + 5, b"hello")
    assert mem.read(BASE + 4, 7) == b"\0hello\0"


def test_write_and_read_go_across_adjacent_banks(mem):
    data = bytes(range(200))
    mem.write(BASE + 4 * PAGE - 100, data)
    assert mem.read(BASE + 4 * PAGE - 100, 200) == data


@pytest.mark.parametrize(
    ("gpa", "size"),
    [
        (BASE - 1, 1),
        (BASE - 1, 2),
        (BASE + 8 * PAGE, 1),
        (BASE + 8 * PAGE - 1, 2),
        (BASE + 7 * PAGE, 10 * PAGE),
        (BASE, -1),
        (0, 1),
        (2**64 - 1, 1),
        (2**64 - 1, 2**64),
        (-1, 1),
        (BASE, 2**64),
    ],
)
def test_access_outside_the_banks_is_refused(mem, gpa, size):
    with pytest.raises(GuestAccessError):
        mem.read(gpa, size)
    with pytest.raises(GuestAccessError):
        mem.view(gpa, size)
    with pytest.raises(GuestAccessError):
        mem.iovec([(BASE, 1), (gpa, size)])
    with pytest.raises(GuestAccessError):
        mem.host_address(gpa, size)


def test_write_that_does_not_fit_changes_nothing(mem):
    with pytest.raises(GuestAccessError, match=r"2 bytes at 0x80007fff are not writable guest memory"):
        mem.write(BASE + 8 * PAGE - 1, b"xy")
    assert mem.read(BASE + 8 * PAGE - 1, 1) == b"\0"


def test_access_of_no_bytes_gives_nothing_where_there_is_memory(mem):
    assert mem.read(BASE, 0) == b""
    assert mem.iovec([(BASE + 8 * PAGE, 0)]) == []
    with pytest.raises(GuestAccessError):
        mem.read(BASE - PAGE, 0)


def test_write_to_read_only_memory_is_refused_but_reading_is_not(mem):
    rom = BASE + 16 * PAGE
    for attempt in (lambda: mem.write(rom, b"x"), lambda: mem.view(rom, 1, writable=True)):
        with pytest.raises(GuestAccessError):
            attempt()
    with pytest.raises(GuestAccessError):
        mem.iovec([(rom, 1)], writable=True)
    assert mem.read(rom, 1) == b"\0"


def test_view_is_the_memory_itself(mem):
    view = mem.view(BASE + PAGE, 4, writable=True)
    view[:] = b"abcd"
    view.release()
    assert mem.read(BASE + PAGE, 4) == b"abcd"


def test_view_without_writable_cannot_write(mem):
    with mem.view(BASE, 4) as view, pytest.raises(TypeError):
        view[0] = 1


def test_view_across_banks_is_refused(mem):
    with pytest.raises(GuestAccessError):
        mem.view(BASE + 4 * PAGE - 1, 2)


def test_iovec_splits_at_the_border_of_banks(mem):
    views = mem.iovec([(BASE + 4 * PAGE - 1, 3), (BASE, 2)], writable=True)
    assert [len(view) for view in views] == [1, 2, 2]
    views[1][:] = b"yz"
    for view in views:
        view.release()
    assert mem.read(BASE + 4 * PAGE, 2) == b"yz"


def test_host_address_is_where_the_bytes_are(mem):
    mem.write(BASE + 5 * PAGE + 3, b"here")
    assert ctypes.string_at(mem.host_address(BASE + 5 * PAGE + 3, 4), 4) == b"here"


@pytest.mark.parametrize("backing", [memory.ANONYMOUS, MEMFD])
@pytest.mark.parametrize("base", [BASE, BASE + PAGE, BASE + 3 * MIB])
def test_host_address_is_congruent_to_the_guest_address(base, backing):
    with GuestMemory() as mem:
        bank = mem.add(base, 4 * MIB, backing=backing)
        assert bank.host_address % (2 * MIB) == base % (2 * MIB)


def test_memfd_backing_is_the_file_from_offset_zero():
    with GuestMemory() as mem:
        bank = mem.add(BASE, 2 * PAGE, backing=MEMFD)
        mem.write(BASE, b"shared")
        assert os.pread(bank.fd, 6, 0) == b"shared"
        assert os.fstat(bank.fd).st_size == 2 * PAGE


def test_overlap_names_both_banks_with_their_ranges(mem):
    with pytest.raises(ConfigError) as caught:
        mem.add(BASE + 3 * PAGE, PAGE, kind=DEVICE)
    assert str(caught.value) == "device memory [0x80003000..0x80003fff] overlaps RAM [0x80000000..0x80003fff]"


@pytest.mark.parametrize(
    ("base", "size", "says"),
    [
        (BASE, 0, "multiples of 4096"),
        (BASE, -PAGE, "multiples of 4096"),
        (BASE + 1, PAGE, "multiples of 4096"),
        (BASE, PAGE + 1, "multiples of 4096"),
        (2**64 - PAGE, 2 * PAGE, "beyond 64-bit"),
    ],
)
def test_bank_with_odd_numbers_is_refused(base, size, says):
    with GuestMemory() as mem, pytest.raises(ConfigError, match=says):
        mem.add(base, size)


def test_bank_that_ends_with_the_address_space_is_fine():
    with GuestMemory() as mem:
        mem.add(2**64 - PAGE, PAGE)
        mem.write(2**64 - 1, b"!")
        assert mem.read(2**64 - 1, 1) == b"!"


@pytest.mark.parametrize("size", [1 << 50, 1 << 62])
@pytest.mark.parametrize("backing", [memory.ANONYMOUS, MEMFD])
def test_more_than_the_host_can_give_names_both_amounts(size, backing):
    with GuestMemory() as mem:
        with pytest.raises(
            ConfigError, match=rf"The host cannot give {size >> 20} MiB of guest memory: \d+ MiB .* --mem"
        ):
            mem.add(BASE, size, backing=backing)
        assert mem.banks == ()


def test_hugetlbfs_path_that_is_none_is_refused(tmp_path):
    with GuestMemory() as mem:
        with pytest.raises(ConfigError, match="is no hugetlbfs mount"):
            mem.add(BASE, 2 * MIB, backing=str(tmp_path))
        with pytest.raises(ConfigError, match="No such file or directory; name where"):
            mem.add(BASE, 2 * MIB, backing=str(tmp_path / "none"))


def test_hugetlbfs_size_that_is_no_multiple_of_its_pages_is_refused(monkeypatch):
    class Huge:
        f_bsize = 2 * MIB

    monkeypatch.setattr(os, "statvfs", lambda path: Huge)
    with GuestMemory() as mem, pytest.raises(ConfigError, match="pages of 2 MiB"):
        mem.add(BASE, 3 * MIB, backing="/dev/hugepages")


def test_host_without_huge_pages_is_no_error(monkeypatch):
    def refuse(*_):
        raise OSError(errno.EINVAL, "no huge pages")

    class Mapping(memory.mmap.mmap):
        madvise = refuse

    monkeypatch.setattr(memory.mmap, "mmap", Mapping)
    with GuestMemory() as mem:
        assert mem.add(BASE, 2 * MIB).size == 2 * MIB


def test_banks_are_in_the_order_of_their_addresses():
    with GuestMemory() as mem:
        mem.add(BASE + MIB, PAGE)
        mem.add(BASE, PAGE, kind=DEVICE)
        assert [(bank.base, bank.kind) for bank in mem.banks] == [(BASE, DEVICE), (BASE + MIB, RAM)]


def test_main_bank_is_the_largest_of_ram():
    with GuestMemory() as mem:
        assert mem.main[:2] == (0, 0)
        mem.add(BASE, PAGE)
        mem.add(BASE + MIB, 8 * PAGE, kind=DEVICE)
        mem.add(BASE + 2 * MIB, 4 * PAGE)
        base, size, view, read_only = mem.main
        assert (base, size, len(view)) == (BASE + 2 * MIB, 4 * PAGE, 4 * PAGE)
        assert read_only.readonly
        view[0] = 7
        assert mem.read(base, 1) == bytes([read_only[0]]) == b"\x07"
    assert mem.main[:2] == (0, 0)


def test_close_with_a_view_alive_names_the_bank_and_can_be_tried_again():
    mem = GuestMemory()
    mem.add(BASE, PAGE)
    view = mem.view(BASE, 1)
    with pytest.raises(HostError, match=r"RAM \[0x80000000\.\.0x80000fff\] is still in use"):
        mem.close()
    view.release()
    mem.close()
    assert mem.banks == ()


def test_close_closes_the_memfd():
    mem = GuestMemory()
    fd = mem.add(BASE, PAGE, backing=MEMFD).fd
    mem.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "image").write_bytes(bytes(range(256)) * 64)
    fd = os.open(tmp_path / "image", os.O_RDONLY)
    yield fd
    os.close(fd)


def test_read_file_into_goes_across_banks(mem, file):
    assert mem.read_file_into(BASE + 3 * PAGE, file, 16, 2 * PAGE) == 2 * PAGE
    assert mem.read(BASE + 3 * PAGE, 2 * PAGE) == (bytes(range(256)) * 64)[16 : 16 + 2 * PAGE]


def test_read_file_into_fills_read_only_memory(mem, file):
    mem.read_file_into(BASE + 16 * PAGE, file, 1, 3)
    assert mem.read(BASE + 16 * PAGE, 3) == b"\x01\x02\x03"


def test_read_file_into_of_a_short_file_says_how_much_there_was(mem, file):
    assert mem.read_file_into(BASE, file, 64 * 256 - 10, 8 * PAGE) == 10


def test_read_file_into_more_than_there_is_memory_is_refused(mem, file):
    with pytest.raises(GuestAccessError):
        mem.read_file_into(BASE, file, 0, 9 * PAGE)


def test_read_file_into_from_what_cannot_be_read_says_why(mem, tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(HostError, match="Is a directory"):
        mem.read_file_into(BASE, fd, 0, PAGE)
    os.close(fd)


def resident(bank):
    """Host pages behind a bank that take memory."""
    vector = (ctypes.c_ubyte * (bank.size // PAGE))()
    mincore = ctypes.CDLL(None).mincore
    mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    assert mincore(bank.host_address, bank.size, vector) == 0
    return [index for index, present in enumerate(vector) if present & 1]


@pytest.mark.parametrize("backing", [ANONYMOUS, MEMFD])
def test_discard_gives_whole_pages_inside_the_range_back(backing):
    with GuestMemory() as mem:
        bank = mem.add(BASE, 8 * PAGE, backing=backing)
        mem.write(BASE, b"x" * 8 * PAGE)
        assert mem.discard(BASE + PAGE + 1, 4 * PAGE) == 3 * PAGE
        assert resident(bank) == [0, 1, 5, 6, 7]
        assert mem.read(BASE, 8 * PAGE) == b"x" * 2 * PAGE + bytes(3 * PAGE) + b"x" * 3 * PAGE
        if backing == MEMFD:
            assert os.pread(bank.fd, 8 * PAGE, 0) == mem.read(BASE, 8 * PAGE)


def test_discard_goes_across_banks(mem):
    mem.write(BASE, b"x" * 8 * PAGE)
    assert mem.discard(BASE + 3 * PAGE, 2 * PAGE) == 2 * PAGE
    assert mem.read(BASE, 8 * PAGE) == b"x" * 3 * PAGE + bytes(2 * PAGE) + b"x" * 3 * PAGE


@pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE, 2 * PAGE - 2])
def test_discard_of_less_than_a_host_page_changes_nothing(mem, size):
    mem.write(BASE, b"x" * 4 * PAGE)
    assert mem.discard(BASE + 1, size) == 0
    assert mem.read(BASE, 4 * PAGE) == b"x" * 4 * PAGE


@pytest.mark.parametrize("gpa", [BASE - PAGE, BASE + 8 * PAGE, BASE + 16 * PAGE, 1 << 63])
def test_discard_of_what_is_no_ram_is_refused(mem, gpa):
    with pytest.raises(GuestAccessError):
        mem.discard(gpa, PAGE)


def test_discard_of_device_memory_is_refused():
    with GuestMemory() as mem:
        mem.add(BASE, PAGE, kind=DEVICE)
        mem.write(BASE, b"x")
        with pytest.raises(GuestAccessError):
            mem.discard(BASE, PAGE)
        (view,) = mem.iovec([(BASE, PAGE)], writable=True)
        assert mem.discard_view(view) == 0
        view.release()
        assert mem.read(BASE, 1) == b"x"


def test_discard_keeps_to_the_banks_own_page_size(mem):
    mem.banks[0].page = 2 * PAGE
    mem.write(BASE, b"x" * 4 * PAGE)
    assert mem.discard(BASE + PAGE, 3 * PAGE) == 2 * PAGE
    assert mem.read(BASE, 4 * PAGE) == b"x" * 2 * PAGE + bytes(2 * PAGE)


def test_discard_that_the_host_refuses_gives_nothing_back(mem, monkeypatch):
    monkeypatch.setattr(memory, "_libc_madvise", lambda *_: -1)
    assert mem.discard(BASE, 4 * PAGE) == 0


def test_discard_of_a_view_gives_its_pages_back(mem):
    mem.write(BASE, b"x" * 8 * PAGE)
    views = mem.iovec([(BASE + PAGE, 4 * PAGE)], writable=True)
    assert [mem.discard_view(view) for view in views] == [3 * PAGE, PAGE]
    assert mem.discard_view(views[0][:0]) == 0
    views.clear()
    assert mem.read(BASE, 8 * PAGE) == b"x" * PAGE + bytes(4 * PAGE) + b"x" * 3 * PAGE
