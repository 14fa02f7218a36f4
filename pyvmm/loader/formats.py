# SPDX-License-Identifier: Apache-2.0
"""Telling kernel files apart by their first bytes, and reading the headers of the RISC-V ones.

The flat Image's header: Documentation/arch/riscv/boot-image-header.rst. The EFI zboot header:
drivers/firmware/efi/libstub/zboot-header.S. Both in the Linux kernel.
"""

from __future__ import annotations

import struct

#: How many bytes of a file the functions here want to see.
HEAD_SIZE = 4096

IMAGE, ELF, ZBOOT = "Image", "ELF", "EFI zboot"

_IMAGE = struct.Struct("<IIQQQIIQQII")  # 64 bytes
_IMAGE_MAGIC2 = b"RSC\x05"
_COMPRESSIONS = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x89LZO\x00\r\n\x1a\n", "lzo"),
    (b"\x5d\x00\x00", "lzma"),
)
_ZBOOT_SIZE = 64
_ZBOOT_COMPRESSIONS = {"xzkern": "xz", "zstd22": "zstd"}  # names of older kernels

_PE_MACHINES = {
    0x014C: "x86",
    0x8664: "x86-64",
    0x01C2: "32-bit Arm",
    0xAA64: "arm64",
    0x5032: "32-bit RISC-V",
    0x6232: "32-bit LoongArch",
    0x6264: "LoongArch",
}
_ELF_MACHINES = {
    2: "SPARC",
    3: "x86",
    8: "MIPS",
    20: "32-bit PowerPC",
    21: "PowerPC",
    22: "s390",
    40: "32-bit Arm",
    43: "SPARC",
    62: "x86-64",
    183: "arm64",
    258: "LoongArch",
}
ELF_RISCV = 243


def recognise(head: bytes) -> str | None:
    """IMAGE, ELF, ZBOOT, the name of a compression, or None for none of them."""
    if head.startswith(b"\x7fELF"):
        return ELF
    if head[0x38:0x3C] == _IMAGE_MAGIC2 and len(head) >= _IMAGE.size:
        return IMAGE
    if head[4:8] == b"zimg" and head.startswith(b"MZ") and len(head) >= _ZBOOT_SIZE:
        return ZBOOT
    for magic, name in _COMPRESSIONS:
        if head.startswith(magic):
            return name
    return None


def foreign(head: bytes) -> str | None:
    """What is wrong with a file that is for another machine or another option, as the end of a sentence."""
    architecture = _architecture(head)
    if architecture is not None:
        return f"is built for {architecture}; give one for 64-bit RISC-V."
    if head.startswith(b"\x27\x05\x19\x56"):
        return "is a U-Boot uImage; give the kernel that was put into it."
    if head.startswith(b"\xd0\x0d\xfe\xed"):
        return "is a device tree or a FIT image; give the kernel itself."
    if head.startswith((b"070701", b"070702")):
        return "is a cpio archive; an initramfs goes with --initrd."
    return None


def _architecture(head: bytes) -> str | None:
    if head.startswith(b"\x7fELF"):
        return _elf_architecture(head)
    if head[0x38:0x3C] == b"ARM\x64":
        return "arm64"
    if head[0x24:0x28] == b"\x18\x28\x6f\x01":
        return "32-bit Arm"
    if head[0x202:0x206] == b"HdrS":
        return "x86"
    machine = _pe_machine(head)
    return None if machine is None else _PE_MACHINES.get(machine)


def _elf_architecture(head: bytes) -> str | None:
    if len(head) < 20:
        return None
    order = ">" if head[5] == 2 else "<"
    machine = struct.unpack_from(order + "H", head, 18)[0]
    if machine != ELF_RISCV:
        return _ELF_MACHINES.get(machine, f"another architecture (ELF machine {machine})")
    return None if head[4] == 2 else "32-bit RISC-V"


def _pe_offset(head: bytes) -> int | None:
    """Where the COFF header starts, if this is a PE file (which a kernel with EFI stub is)."""
    if not head.startswith(b"MZ") or len(head) < 0x40:
        return None
    offset: int = struct.unpack_from("<I", head, 0x3C)[0]
    return offset + 4 if offset and head[offset : offset + 4] == b"PE\0\0" else None


def _pe_machine(head: bytes) -> int | None:
    offset = _pe_offset(head)
    if offset is None or offset + 2 > len(head):
        return None
    machine: int = struct.unpack_from("<H", head, offset)[0]
    return machine


def pe_size(head: bytes) -> int:
    """The size a PE file must have, from its section table; 0 when ``head`` does not hold one."""
    offset = _pe_offset(head)
    if offset is None or offset + 20 > len(head):
        return 0
    sections, optional = struct.unpack_from("<2xH12xH", head, offset)
    table = offset + 20 + optional
    if table + 40 * sections > len(head):
        return 0
    ends = (sum(struct.unpack_from("<II", head, table + 40 * i + 16)) for i in range(sections))
    return max(ends, default=0)


class ImageHeader:
    """The header of a flat Image. ``text_offset``: where it goes, from the start of RAM; ``image_size``: its
    size in memory, uninitialised data included; both in bytes. ``file_size``: the least size of the file."""

    __slots__ = ("big_endian", "file_size", "image_size", "text_offset", "version")

    def __init__(self, head: bytes) -> None:
        fields = _IMAGE.unpack_from(head)
        self.text_offset: int = fields[2]
        self.image_size: int = fields[3]
        self.big_endian = bool(fields[4] & 1)
        self.version: tuple[int, int] = (fields[5] >> 16, fields[5] & 0xFFFF)
        self.file_size = pe_size(head) or _IMAGE.size

    def problem(self) -> str | None:
        """Why this kernel cannot be booted, as the end of a sentence, or None."""
        if self.big_endian:
            return "is a big-endian kernel, and KVM's RISC-V guests are little-endian."
        if self.version[0]:
            major, minor = self.version
            return f"has an Image header of version {major}.{minor}, and pyvmm understands 0.x only."
        if self.image_size < _IMAGE.size:
            return "has a damaged header: it gives no image size."
        if self.text_offset % (2 << 20):
            return f"wants to be loaded at {self.text_offset:#x}, which is not a multiple of 2 MiB."
        return None


class ZbootHeader:
    """The header of an EFI zboot file: where its payload lies, in bytes, and how it is compressed."""

    __slots__ = ("compression", "offset", "size")

    def __init__(self, head: bytes) -> None:
        self.offset: int
        self.size: int
        self.offset, self.size = struct.unpack_from("<II", head, 8)
        name = head[24:56].split(b"\0")[0].decode("ascii", "replace")
        self.compression = _ZBOOT_COMPRESSIONS.get(name, name)
