# SPDX-License-Identifier: Apache-2.0
"""Shared libraries that an ELF file names, on files built here."""

from __future__ import annotations

import struct

import pytest

from pyvmm.lab import elf


def shared_object(*names: str, vaddr: int = 0x10000) -> bytes:
    """The smallest ELF file whose dynamic section needs ``names``; its one segment is loaded at ``vaddr``."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in names)
    strings_at = 64 + 2 * 56
    offsets = [strings.index(name.encode()) for name in names]
    dynamic = b"".join(struct.pack("<qQ", 1, offset) for offset in offsets)
    dynamic += struct.pack("<qQqQ", 5, vaddr + strings_at, 0, 0)
    dynamic_at = strings_at + len(strings)
    size = dynamic_at + len(dynamic)
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 3, 243, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, vaddr, vaddr, size, size, 0x1000)
    section = (2, 6, dynamic_at, vaddr + dynamic_at, vaddr + dynamic_at, len(dynamic), len(dynamic), 8)
    return head + load + struct.pack("<IIQQQQQQ", *section) + strings + dynamic


def test_needed_names_are_read_in_order():
    assert elf.needed(shared_object("libc.so.6", "libz.so.1")) == ["libc.so.6", "libz.so.1"]


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(60)])
def test_other_files_need_nothing(data):
    assert elf.needed(data) == []


def test_libraries_are_followed_through_other_libraries(tmp_path):
    (tmp_path / "tool").write_bytes(shared_object("liba.so", "libgone.so"))
    (tmp_path / "liba.so").write_bytes(shared_object("libb.so"))
    (tmp_path / "libb.so").write_bytes(shared_object("liba.so"))
    assert elf.libraries([tmp_path / "tool"], tmp_path) == {"liba.so", "libb.so"}
