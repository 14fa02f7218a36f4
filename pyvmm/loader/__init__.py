# SPDX-License-Identifier: Apache-2.0
"""What a machine starts from: a kernel or firmware, and an initrd, checked, placed, and put into its memory.

Opening checks everything that can be seen without reading the files whole, so that a wrong option is an error
before a machine exists. A flat Image and an initrd are then read straight into guest memory; what is
compressed is decompressed into it piece by piece.
"""

from __future__ import annotations

from pyvmm.errors import ConfigError
from pyvmm.loader import formats
from pyvmm.loader.files import File
from pyvmm.loader.placement import Placement, place
from pyvmm.threads import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from types import TracebackType
    from typing import Protocol

    from pyvmm.loader.files import GuestMemory
    from pyvmm.loader.streams import Stream

    class Program(Protocol):
        """Something to load and start. ``ram_base`` and ``ram_size`` say where RAM is, in bytes."""

        def extent(self, ram_base: int, ram_size: int) -> tuple[int, int]:
            """The half-open range of guest addresses that it takes."""

        def entry(self, ram_base: int, ram_size: int) -> int:
            """The guest address of its first instruction."""

        def load(self, memory: GuestMemory, ram_base: int, ram_size: int) -> None:
            """Put it there."""


# Flat firmware says nothing of itself: U-Boot for S mode on QEMU's virt machine, which is what there is, is
# linked for 2 MiB into RAM. It clears its BSS beyond the end of the file and, later, moves to the end of RAM.
_FIRMWARE_OFFSET = 2 << 20
_FIRMWARE_BSS = 2 << 20


class Boot:
    """The files that a machine starts from, open. Use it as a context manager, or call ``close``.

    ``ram_base`` and ``ram_size`` are bytes. Raises ConfigError, one sentence that names the file and what to
    do, for whatever cannot be booted. Firmware and kernel exclude each other: there is no convention by which
    S-mode firmware is told of a kernel in memory. ``agent``: put the guest's agent in front of the initrd.
    """

    def __init__(
        self,
        ram_base: int,
        ram_size: int,
        *,
        kernel: str | None = None,
        initrd: str | None = None,
        firmware: str | None = None,
        agent: bool = False,
    ) -> None:
        _check_combination(kernel, initrd, firmware)
        self.ram_base = ram_base
        self.ram_size = ram_size
        self._files: list[File | Stream] = []
        self._loading: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._fragment = _agent() if agent else b""
        try:
            self._initrd = None if initrd is None else self._open("initrd", initrd)
            self._program = self._recognise(
                self._open("firmware", firmware) if kernel is None else self._open("kernel", kernel)
            )
            self._extent = self._program.extent(ram_base, ram_size)
            #: Where the boot hart starts; it finds its id in a0 and the device tree's address in a1.
            self.entry = self._program.entry(ram_base, ram_size)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Boot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files, once what ``begin`` began has ended. Idempotent."""
        if self._loading is not None:
            self._loading.join()
        while self._files:
            self._files.pop().close()

    def place(self, fdt_size: int) -> Placement:
        """Where everything goes, with a device tree of ``fdt_size`` bytes.

        Raises ConfigError, naming the memory that is enough, when it does not fit.
        """
        initrd_size = len(self._fragment) + (self._initrd.size if self._initrd else 0)
        return place(self.ram_base, self.ram_size, self._extent, initrd_size, fdt_size)

    def begin(self, memory: GuestMemory) -> None:
        """Put the program in its place, which does not depend on the rest's, on a thread of its own.

        The kernel is large, and copying it needs no Python: the caller makes the machine meanwhile.
        """

        def load() -> None:
            try:
                self._program.load(memory, self.ram_base, self.ram_size)
            except BaseException as error:
                self._failure = error

        self._loading = start_thread(load, "load")

    def load(self, memory: GuestMemory, placement: Placement) -> None:
        """Put program and initrd where ``placement`` says, or wait for what ``begin`` began of it.

        Guest memory is all zeros before. Raises ConfigError for a file that turns out to be damaged,
        HostError when one cannot be read.
        """
        if self._loading is None:
            self._program.load(memory, self.ram_base, self.ram_size)
        else:
            self._loading.join()
        if self._failure is not None:
            raise self._failure
        if placement.initrd is None:
            return
        start = placement.initrd[0]
        if self._fragment:
            memory.write(start, self._fragment)
        if self._initrd is not None:
            self._initrd.copy_to(memory, start + len(self._fragment), 0, self._initrd.size)

    def _open(self, what: str, path: str | None) -> File:
        file = File.open(what, path or "")
        self._files.append(file)
        return file

    def _recognise(self, file: File) -> Program:
        head = file.read(0, formats.HEAD_SIZE)
        kind = formats.recognise(head)
        problem = formats.foreign(head)
        if problem is not None and kind != formats.IMAGE:
            raise file.error(problem)
        if kind == formats.IMAGE:
            return Image(file, head)
        if kind == formats.ELF:
            from pyvmm.loader.elf import Elf

            return Elf(file)
        if kind is not None:
            return self._unpack(file, head, kind)
        if file.what == "firmware":
            return FlatFirmware(file)
        raise file.error("is no RISC-V kernel; give an Image, compressed or not, or an ELF file.")

    def _unpack(self, file: File, head: bytes, kind: str) -> Program:
        from pyvmm.loader.streams import Stream

        if file.size > self.ram_size:
            raise file.error("is larger, compressed, than the guest's memory; give it more with --mem.")
        if kind == formats.ZBOOT:
            zboot = formats.ZbootHeader(head)
            if zboot.offset + zboot.size > file.size:
                raise file.error("is truncated: its EFI zboot header announces more than it holds.")
            stream = Stream(file, zboot.compression, zboot.offset, zboot.size)
        else:
            stream = Stream(file, kind)
        self._files.append(stream)
        return self._recognise_unpacked(file, stream)

    def _recognise_unpacked(self, file: File, stream: Stream) -> Program:
        head = stream.peek(formats.HEAD_SIZE)
        kind = formats.recognise(head)
        problem = formats.foreign(head)
        if kind == formats.IMAGE:
            return Image(stream, head)
        if problem is not None:
            raise file.error(problem)
        if kind == formats.ELF:
            from pyvmm.loader.elf import Elf

            unpacked = stream.copy_to_file(self.ram_size)
            self._files.append(unpacked)
            return Elf(unpacked)
        raise file.error(f"holds no RISC-V kernel: its {stream.compression} stream is neither Image nor ELF.")


def _agent() -> bytes:
    from pyvmm.guest.fragment import fragment

    return fragment()


def _check_combination(kernel: str | None, initrd: str | None, firmware: str | None) -> None:
    if kernel is None and firmware is None:
        raise ConfigError(
            "There is nothing to boot; name a kernel with --kernel, or firmware with --firmware."
        )
    if kernel is not None and firmware is not None:
        raise ConfigError(
            f"Firmware loads its own kernel, from a disk: leave out --firmware {firmware}, or the kernel "
            f"{kernel}."
        )
    if initrd is not None and kernel is None:
        raise ConfigError("An initrd goes with a kernel; leave out --initrd, or give --kernel.")


class Image:
    """A flat Image, from a file or out of a compressed stream."""

    def __init__(self, source: File | Stream, head: bytes) -> None:
        self._source = source
        self._file = source if isinstance(source, File) else source.file
        self._header = header = formats.ImageHeader(head)
        problem = header.problem()
        if problem is not None:
            raise self._file.error(problem)
        if isinstance(source, File):
            self._check_size(source.size)

    def extent(self, ram_base: int, _ram_size: int) -> tuple[int, int]:
        """From the header; includes the BSS, which is not in the file."""
        start = ram_base + self._header.text_offset
        return start, start + self._header.image_size

    def entry(self, ram_base: int, _ram_size: int) -> int:
        """The first byte of the header, which is an instruction."""
        return ram_base + self._header.text_offset

    def load(self, memory: GuestMemory, ram_base: int, _ram_size: int) -> None:
        """Read or decompress it into its place."""
        start, limit = ram_base + self._header.text_offset, self._header.image_size
        if isinstance(self._source, File):
            # More than that (a signature, padding) is not part of the kernel.
            self._source.copy_to(memory, start, 0, min(self._source.size, limit))
        else:
            self._check_size(self._source.copy_to(memory, start, limit))

    def _check_size(self, size: int) -> None:
        if size < self._header.file_size:
            raise self._file.error(
                f"is truncated: its header announces {self._header.file_size} bytes, and there are {size}."
            )


class FlatFirmware:
    """A flat binary that is not a kernel: S-mode firmware."""

    def __init__(self, file: File) -> None:
        self._file = file

    def extent(self, ram_base: int, _ram_size: int) -> tuple[int, int]:
        """The file, and room for its uninitialised data."""
        start = ram_base + _FIRMWARE_OFFSET
        return start, start + self._file.size + _FIRMWARE_BSS

    def entry(self, ram_base: int, _ram_size: int) -> int:
        """Its first byte."""
        return ram_base + _FIRMWARE_OFFSET

    def load(self, memory: GuestMemory, ram_base: int, _ram_size: int) -> None:
        """Read it into its place."""
        self._file.copy_to(memory, ram_base + _FIRMWARE_OFFSET, 0, self._file.size)
