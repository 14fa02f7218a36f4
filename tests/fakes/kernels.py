# SPDX-License-Identifier: Apache-2.0
"""Kernel files made to order: flat Images, EFI zboot files and ELF executables, valid or spoilt."""

import struct

MIB = 1 << 20
PE_RISCV64 = 0x5064


def image(
    body=b"kernel code",
    *,
    image_size=4 * MIB,
    text_offset=2 * MIB,
    flags=0,
    version=2,
    pe_sections=(),
    pe_machine=PE_RISCV64,
):
    """A flat Image: header, PE header when there are ``pe_sections`` of (offset, size), then ``body``."""
    pe = _pe_header(pe_sections, pe_machine) if pe_sections else b""
    header = struct.pack(
        "<IIQQQIIQ8s4sI",
        *(0x5A4D, 0, text_offset, image_size, flags, version, 0, 0),
        *(b"RISCV\0\0\0", b"RSC\x05", 0x40 if pe else 0),
    )
    return header + pe + body


def _pe_header(sections, machine):
    rows = [struct.pack("<8sIIIIIIHHI", b".text", size, 0, size, at, 0, 0, 0, 0, 0) for at, size in sections]
    return b"PE\0\0" + struct.pack("<HHIIIHH", machine, len(sections), 0, 0, 0, 0, 0) + b"".join(rows)


def zboot(payload, compression=b"gzip", *, size=None, pe_machine=PE_RISCV64):
    """An EFI zboot file around the compressed ``payload``."""
    size = len(payload) if size is None else size
    pe = _pe_header((), pe_machine)
    offset = 0x40 + len(pe)
    header = struct.pack("<4s4sII8x32sI", b"MZ\0\0", b"zimg", offset, size, compression, 0x818223CD)
    return header.ljust(0x3C, b"\0")[:0x3C] + struct.pack("<I", 0x40) + pe + payload


def elf(segments, entry, *, machine=243, kind=2, elf_class=2):
    """An ELF file of PT_LOAD ``segments``: (virtual, physical, data, memory_size)."""
    table_end = 64 + 56 * len(segments)
    identity = b"\x7fELF" + bytes([elf_class, 1, 1]) + bytes(9)
    header = identity + struct.pack(
        "<HHIQQQIHHHHHH", kind, machine, 1, entry, 64, 0, 0, 64, 56, len(segments), 0, 0, 0
    )
    rows, contents = b"", b""
    for virtual, physical, data, memory_size in segments:
        offset = table_end + len(contents)
        rows += struct.pack("<IIQQQQQQ", 1, 7, offset, virtual, physical, len(data), memory_size, 0x1000)
        contents += data
    return header + rows + contents
