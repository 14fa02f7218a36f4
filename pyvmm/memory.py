# SPDX-License-Identifier: Apache-2.0
"""Guest-physical memory: banks that may not overlap, and bounds-checked access to them.

Addresses come from the guest and are hostile: every access is checked against the banks and raises
GuestAccessError, which devices catch. Addresses and sizes are bytes.
"""

from __future__ import annotations

import ctypes
import mmap
import os

from pyvmm.errors import ConfigError, GuestAccessError, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: Kinds of banks. All of them can be read and written from here; only RAM is announced to the guest as
#: memory, and a guest's device access (``writable=True``) may not go to READ_ONLY.
RAM, READ_ONLY, DEVICE = "RAM", "read-only memory", "device memory"

#: Backings. Any other string is a directory where hugetlbfs is mounted.
ANONYMOUS, MEMFD = "anonymous", "memfd"
_HOST = "The host"

_PAGE = mmap.PAGESIZE
_HUGE = 2 << 20  # the G-stage's smallest block
_ADDRESS_END = 1 << 64
_MAX_IOV = 1024  # IOV_MAX: what preadv takes at most
_MAP_FIXED = 0x10
_NO_MAIN = (0, 0, memoryview(b""), memoryview(b""))


class Bank:
    """One range of guest-physical memory and the host memory behind it."""

    __slots__ = ("base", "end", "fd", "host_address", "kind", "mapping", "page", "readable", "size", "view")

    def __init__(
        self, base: int, size: int, kind: str, *, mapping: mmap.mmap, offset: int, fd: int, page: int
    ) -> None:
        self.base = base
        self.size = size
        self.end = base + size
        self.kind = kind
        self.mapping = mapping  # owns the host memory; the bank begins at ``offset`` of it
        self.view = memoryview(mapping)[offset : offset + size]  # writable, whatever the kind
        self.readable = self.view.toreadonly()
        self.host_address = _address_of(mapping) + offset
        self.fd = fd  # of a shared backing, whose offset 0 is the bank's base; -1 for anonymous memory
        self.page = page  # bytes in which the host gives and takes it

    def __str__(self) -> str:
        return f"{self.kind} [0x{self.base:x}..0x{self.end - 1:x}]"


class GuestMemory:
    """All banks. Context manager: closing gives the memory back.

    Banks are added before the machine starts, by one thread; accesses then come from any.
    """

    def __init__(self) -> None:
        self._banks: tuple[Bank, ...] = ()
        self._find_main()

    def _find_main(self) -> None:
        """Note the largest bank of RAM, where nearly all that devices touch is."""
        main = max((bank for bank in self._banks if bank.kind == RAM), key=_size_of, default=None)
        #: Its base and size, and views of it, the second one read-only: for those to whom a call is dear.
        self.main = _NO_MAIN if main is None else (main.base, main.size, main.view, main.readable)

    def __enter__(self) -> GuestMemory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def banks(self) -> tuple[Bank, ...]:
        """The banks by ascending address."""
        return self._banks

    def add(self, base: int, size: int, *, kind: str = RAM, backing: str = ANONYMOUS) -> Bank:
        """Add a bank at guest-physical ``base``. Raises ConfigError: overlap, odd numbers, not enough memory.

        Its host address is congruent to ``base`` modulo 2 MiB (for hugetlbfs, modulo its page size), without
        which KVM could not map it with huge pages, and transparent huge pages are asked for.
        """
        self._check_range(base, size, kind)
        align = _HUGE if backing in (ANONYMOUS, MEMFD) else _huge_page_size(backing, base, size)
        reserved = _reserve(size, align)
        offset = (base - _address_of(reserved)) % align
        try:
            fd = _overlay(_address_of(reserved) + offset, size, backing)
        except BaseException:
            reserved.close()
            raise
        if backing in (ANONYMOUS, MEMFD):
            _advise_huge_pages(reserved, offset, size)
        page = _PAGE if backing in (ANONYMOUS, MEMFD) else align
        bank = Bank(base, size, kind, mapping=reserved, offset=offset, fd=fd, page=page)
        self._banks = tuple(sorted((*self._banks, bank), key=_base_of))
        self._find_main()
        return bank

    def _check_range(self, base: int, size: int, kind: str) -> None:
        if size <= 0 or base < 0 or base % _PAGE or size % _PAGE:
            raise ConfigError(
                f"{kind} at 0x{base:x} of {size} bytes: both must be multiples of {_PAGE} bytes"
            )
        if base + size > _ADDRESS_END:
            raise ConfigError(f"{kind} at 0x{base:x} of {size} bytes reaches beyond 64-bit addresses")
        for bank in self._banks:
            if base < bank.end and bank.base < base + size:
                raise ConfigError(f"{kind} [0x{base:x}..0x{base + size - 1:x}] overlaps {bank}")

    def close(self) -> None:
        """Give all memory back. Raises HostError while somebody still holds a view of it.

        The virtual machine must be gone, or its slots deleted.
        """
        for bank in self._banks:
            bank.readable.release()
            bank.view.release()
            try:
                bank.mapping.close()
            except BufferError as error:
                raise HostError(f"{bank} is still in use: a view of it was not released") from error
            if bank.fd >= 0:
                os.close(bank.fd)
            self._banks = tuple(other for other in self._banks if other is not bank)
            self._find_main()

    # Access

    def view(self, gpa: int, size: int, *, writable: bool = False) -> memoryview:
        """The memory itself, [gpa, gpa+size) of one bank. Release it when done; it pins the bank.

        ``writable`` says what the caller means to do: READ_ONLY banks refuse it. Without it the view is
        read-only.
        """
        bank = self._bank(gpa, size, writable)
        part = bank.view[gpa - bank.base : gpa - bank.base + size]
        return part if writable else part.toreadonly()

    def read(self, gpa: int, size: int) -> bytes:
        """A copy of [gpa, gpa+size), which may go across adjacent banks."""
        base, end, view, _ = self.main
        start = gpa - base
        stop = start + size
        if 0 <= start < stop <= end:
            return bytes(view[start:stop])
        return b"".join(bank.view[start:stop] for bank, start, stop in self._pieces(gpa, size, False))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` to ``gpa``, which may go across adjacent banks. All or nothing."""
        done = 0
        for bank, start, stop in self._pieces(gpa, len(data), True):
            bank.view[start:stop] = data[done : done + stop - start]
            done += stop - start

    def iovec(self, pairs: Iterable[tuple[int, int]], *, writable: bool = False) -> list[memoryview]:
        """Views of every (gpa, size), for preadv and pwritev; those across banks become several."""
        views: list[memoryview] = []
        base, end, view, readable = self.main  # the hot path of devices
        whole = view if writable else readable
        for gpa, size in pairs:
            start = gpa - base
            stop = start + size
            if 0 <= start < stop <= end:
                views.append(whole[start:stop])
            else:
                for bank, start, stop in self._pieces(gpa, size, writable):
                    views.append((bank.view if writable else bank.readable)[start:stop])
        return views

    def host_address(self, gpa: int, size: int) -> int:
        """Where [gpa, gpa+size) of one bank lies in this process: for memory slots and ``ring`` only."""
        bank = self._bank(gpa, size, False)
        return bank.host_address + gpa - bank.base

    def read_file_into(self, gpa: int, fd: int, offset: int, size: int) -> int:
        """Read up to ``size`` bytes at ``offset`` of a file straight into memory; returns how many came.

        Goes into READ_ONLY banks too: it is how they are filled. Raises HostError when reading fails.
        """
        done = 0
        while done < size:
            views = [b.view[i:j] for b, i, j in self._pieces(gpa + done, size - done, False)][:_MAX_IOV]
            try:
                count = os.preadv(fd, views, offset + done)
            except OSError as error:
                raise HostError(f"reading a file into guest memory failed: {error.strerror}") from error
            finally:  # a traceback would keep them, and the bank with them
                for view in views:
                    view.release()
            if not count:
                break
            done += count
        return done

    def discard(self, gpa: int, size: int) -> int:
        """Give [gpa, gpa+size) of RAM back to the host: it reads as zeros then, and costs nothing until used.

        Only whole host pages go. Returns how many bytes went; none where the host refuses (locked memory).
        """
        pieces = self._pieces(gpa, size, True)
        if any(bank.kind != RAM for bank, _, _ in pieces):
            raise GuestAccessError(f"{size} bytes at 0x{gpa:x} are not RAM")
        return sum(_discard(bank, start, stop) for bank, start, stop in pieces)

    def discard_view(self, view: memoryview) -> int:
        """``discard`` of what a writable view shows that ``view`` or ``iovec`` made."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(view)) if len(view) else 0
        for bank in self._banks:
            start = address - bank.host_address
            if bank.kind == RAM and 0 <= start < bank.size:
                return _discard(bank, start, start + len(view))
        return 0

    def _bank(self, gpa: int, size: int, writable: bool) -> Bank:
        for bank in self._banks:
            if bank.base <= gpa and gpa + size <= bank.end and size >= 0:
                if writable and bank.kind == READ_ONLY:
                    break
                return bank
        raise GuestAccessError(_refusal(gpa, size, writable))

    def _pieces(self, gpa: int, size: int, writable: bool) -> list[tuple[Bank, int, int]]:
        """(bank, start, stop) of a range that adjacent banks cover; offsets are into the banks."""
        if size <= 0:
            self._bank(gpa, size, writable)
            return []
        pieces, at, end = [], gpa, gpa + size
        for bank in self._banks:
            if bank.base <= at < bank.end and not (writable and bank.kind == READ_ONLY):
                stop = min(end, bank.end)
                pieces.append((bank, at - bank.base, stop - bank.base))
                at = stop
                if at == end:
                    return pieces
        raise GuestAccessError(_refusal(gpa, size, writable))


def _refusal(gpa: int, size: int, writable: bool) -> str:
    return f"{size} bytes at 0x{gpa:x} are not {'writable ' if writable else ''}guest memory"


def _base_of(bank: Bank) -> int:
    return bank.base


def _size_of(bank: Bank) -> int:
    return bank.size


# Making the host memory. A Python mmap object owns each range, aligned or not, because it refuses to unmap
# while a memoryview of it exists: a leaked view is an exception then, not a crash. Memory from a file is
# mapped over it in place, which the mmap module cannot do.

_libc_mmap = ctypes.CDLL(None, use_errno=True)["mmap"]
_libc_mmap.restype = ctypes.c_void_p
_libc_mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
)  # fmt: skip


_libc_madvise = ctypes.CDLL(None, use_errno=True)["madvise"]  # unlike mmap.madvise it lets other threads run
_libc_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def _reserve(size: int, align: int) -> mmap.mmap:
    """Anonymous memory of ``size`` bytes and room to align it.

    Not MAP_NORESERVE: then the kernel itself refuses a size that the host could never give.
    """
    try:
        return mmap.mmap(-1, size + align, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError) as error:
        raise _too_large(size, _HOST) from error


def _overlay(address: int, size: int, backing: str) -> int:
    """Put a file's memory at ``address``; returns its descriptor, or -1 when the backing is anonymous."""
    if backing == ANONYMOUS:
        return -1
    try:
        fd = _memory_file(backing)
    except OSError as error:
        raise ConfigError(f"No guest memory can be made in {backing}: {error.strerror}.") from error
    try:
        os.ftruncate(fd, size)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        if _libc_mmap(address, size, protection, mmap.MAP_SHARED | _MAP_FIXED, fd, 0) != address:
            raise OSError(ctypes.get_errno(), "mmap")
    except OSError as error:
        os.close(fd)
        raise _too_large(size, _HOST if backing == MEMFD else backing) from error
    return fd


def _discard(bank: Bank, start: int, stop: int) -> int:
    """Give back the whole host pages inside [start, stop) of a bank. Bytes given back."""
    first, end = -(-start // bank.page) * bank.page, stop // bank.page * bank.page
    if end <= first:
        return 0
    advice = mmap.MADV_DONTNEED if bank.fd < 0 else mmap.MADV_REMOVE  # a file's pages outlive the mapping's
    return 0 if _libc_madvise(bank.host_address + first, end - first, advice) else end - first


def _memory_file(backing: str) -> int:
    """A new file without a name: a memfd, or one on hugetlbfs."""
    if backing == MEMFD:
        return os.memfd_create("pyvmm-guest-memory", os.MFD_CLOEXEC)
    return os.open(backing, os.O_RDWR | os.O_CLOEXEC | os.O_TMPFILE, 0o600)


def _huge_page_size(path: str, base: int, size: int) -> int:
    """The page size of a hugetlbfs mount, of which the bank must be made."""
    try:
        page = os.statvfs(path).f_bsize
    except OSError as error:
        raise ConfigError(
            f"--mem-backend: {path} cannot be used: {error.strerror}; name where hugetlbfs is mounted."
        ) from error
    if page <= _PAGE:
        raise ConfigError(
            f"--mem-backend: {path} is no hugetlbfs mount; make it one: mount -t hugetlbfs none {path}"
        )
    if base % page or size % page:
        raise ConfigError(
            f"Memory on {path} comes in pages of {page >> 20} MiB; choose a multiple of that with --mem."
        )
    return page


def _advise_huge_pages(mapping: mmap.mmap, offset: int, size: int) -> None:
    """MADV_HUGEPAGE. Advice only: a kernel without transparent huge pages refuses it, and that is fine."""
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE, offset, size)
    except OSError:
        pass


def _too_large(size: int, giver: str) -> ConfigError:
    if giver == _HOST:
        rest = f"{_available() >> 20} MiB are available; give the guest less with --mem."
    else:
        rest = "reserve more huge pages, or give the guest less with --mem."
    return ConfigError(f"{giver} cannot give {size >> 20} MiB of guest memory: {rest}")


def _available() -> int:
    """MemAvailable and SwapFree of /proc/meminfo, in bytes."""
    total = 0
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith(("MemAvailable:", "SwapFree:")):
                total += int(line.split()[1]) << 10
    return total


def _address_of(mapping: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))
