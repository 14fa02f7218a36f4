# SPDX-License-Identifier: Apache-2.0
"""ELF executables for 64-bit RISC-V: a Linux vmlinux, or firmware linked for an address in RAM."""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.loader.files import File, GuestMemory

_HEADER = struct.Struct("<16xHHIQQQIHHH")  # up to and with e_phnum
_SEGMENT = struct.Struct("<IIQQQQQQ")
_ET_EXEC, _ET_DYN = 2, 3
_PT_LOAD = 1
_KERNEL_HALF = 1 << 63  # virtual addresses from here on are a kernel's
_KERNEL_OFFSET = 2 << 20  # where Linux goes in RAM: the first 2 MiB are left to firmware
_MAX_SEGMENTS = 256


class Elf:
    """An ELF executable. Errors are ConfigErrors that name the file."""

    def __init__(self, file: File) -> None:
        self._file = file
        header = file.read(0, _HEADER.size)
        if len(header) < _HEADER.size:
            raise file.error("is truncated: it ends within its ELF header.")
        kind, _, _, entry, table, _, _, _, entry_size, count = _HEADER.unpack(header)
        self._entry: int = entry
        if kind not in (_ET_EXEC, _ET_DYN):
            raise file.error("is an ELF file but not an executable; give the linked vmlinux.")
        if entry_size != _SEGMENT.size or not 0 < count <= _MAX_SEGMENTS:
            raise file.error("is damaged, or not an executable: it has no usable program headers.")
        self._segments = [
            segment
            for segment in self._read_segments(table, count)
            if segment.memory_size or segment.file_size
        ]
        if not self._segments:
            raise file.error("holds nothing to load: it has no PT_LOAD segment.")
        for segment in self._segments:
            self._check(segment)

    def _read_segments(self, table: int, count: int) -> list[_Segment]:
        size = count * _SEGMENT.size
        data = self._file.read(table, size) if table < self._file.size else b""
        if len(data) < size:
            raise self._file.error("is truncated: its ELF program headers are missing.")
        return [_Segment(*row[2:7]) for row in _SEGMENT.iter_unpack(data) if row[0] == _PT_LOAD]

    def _check(self, segment: _Segment) -> None:
        if segment.offset + segment.file_size > self._file.size:
            raise self._file.error("is truncated: an ELF segment reaches beyond its end.")
        if segment.file_size > segment.memory_size or segment.physical + segment.memory_size > 1 << 64:
            raise self._file.error("is damaged: an ELF segment's sizes contradict each other.")

    def extent(self, ram_base: int, ram_size: int) -> tuple[int, int]:
        """The half-open range of guest addresses that it takes, given where RAM is."""
        shift = self._shift(ram_base, ram_size)
        return (
            min(segment.physical for segment in self._segments) + shift,
            max(segment.physical + segment.memory_size for segment in self._segments) + shift,
        )

    def entry(self, ram_base: int, ram_size: int) -> int:
        """The guest address to start at: e_entry, which is virtual in a vmlinux."""
        shift = self._shift(ram_base, ram_size)
        for segment in self._segments:
            if 0 <= self._entry - segment.virtual < segment.memory_size:
                return segment.physical + shift + self._entry - segment.virtual
        raise self._file.error("is damaged: its ELF entry point is in none of its segments.")

    def load(self, memory: GuestMemory, ram_base: int, ram_size: int) -> None:
        """Read the segments into guest memory, which is zero where they have uninitialised data."""
        shift = self._shift(ram_base, ram_size)
        for segment in self._segments:
            self._file.copy_to(memory, segment.physical + shift, segment.offset, segment.file_size)

    def _shift(self, ram_base: int, ram_size: int) -> int:
        """What to add to physical addresses.

        A vmlinux runs wherever it is put, 2 MiB aligned, and its physical addresses start at 0 or are virtual
        ones. Anything else must be linked for an address in RAM.
        """
        low = min(segment.physical for segment in self._segments)
        if ram_base <= low < ram_base + ram_size:
            return 0
        if all(segment.virtual >= _KERNEL_HALF for segment in self._segments):
            return ram_base + _KERNEL_OFFSET - low
        raise self._file.error(
            f"is linked for address {low:#x}, where the guest has no RAM (that starts at {ram_base:#x})."
        )


class _Segment:
    """A PT_LOAD program header."""

    __slots__ = ("file_size", "memory_size", "offset", "physical", "virtual")

    def __init__(self, offset: int, virtual: int, physical: int, file_size: int, memory_size: int) -> None:
        self.offset = offset
        self.virtual = virtual
        self.physical = physical
        self.file_size = file_size
        self.memory_size = memory_size
