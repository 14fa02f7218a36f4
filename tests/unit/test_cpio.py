# SPDX-License-Identifier: Apache-2.0
"""The newc writer, read back by cpio's own rules."""

from __future__ import annotations

import os
import stat

import pytest

from pyvmm.cpio import Initramfs


def entries(data: bytes) -> dict[str, tuple[int, bytes, tuple[int, ...]]]:
    """Parse a newc archive: path to (mode, content, all header fields)."""
    found = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = tuple(int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13))
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        at = (at + 110 + fields[11] + 3) & ~3
        content = data[at : at + fields[6]]
        at = (at + fields[6] + 3) & ~3
        if name == "TRAILER!!!":
            assert at == len(data)
            return found
        found[name] = (fields[1], content, fields)


def test_file_is_packed_with_content_mode_and_root_as_owner():
    fs = Initramfs()
    fs.file("init", b"#!/bin/sh\n", 0o755)
    mode, content, fields = entries(fs.pack())["init"]
    assert (mode, content) == (stat.S_IFREG | 0o755, b"#!/bin/sh\n")
    assert fields[2:4] == (0, 0)


def test_missing_parents_are_made_before_their_children():
    fs = Initramfs()
    fs.file("usr/lib/x/y", b"")
    assert list(entries(fs.pack())) == ["usr", "usr/lib", "usr/lib/x", "usr/lib/x/y"]


def test_device_node_carries_its_numbers():
    fs = Initramfs()
    fs.character_device("dev/console", 5, 1)
    mode, _, fields = entries(fs.pack())["dev/console"]
    assert stat.S_ISCHR(mode)
    assert fields[9:11] == (5, 1)


def test_symlink_holds_its_target():
    fs = Initramfs()
    fs.symlink("bin", "usr/bin")
    mode, content, _ = entries(fs.pack())["bin"]
    assert stat.S_ISLNK(mode)
    assert content == b"usr/bin"


def test_copy_takes_directories_links_and_execute_bits(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/run").write_text("x")
    os.chmod(tmp_path / "d/run", 0o700)
    (tmp_path / "d/plain").write_text("y")
    (tmp_path / "d/link").symlink_to("run")
    fs = Initramfs()
    fs.copy(tmp_path / "d", "opt")
    modes = {name: entry[0] for name, entry in entries(fs.pack()).items()}
    assert modes["opt/run"] == stat.S_IFREG | 0o755
    assert modes["opt/plain"] == stat.S_IFREG | 0o644
    assert stat.S_ISLNK(modes["opt/link"])


def test_same_input_in_another_order_gives_the_same_bytes():
    first, second = Initramfs(), Initramfs()
    first.file("a", b"1")
    first.file("b", b"2")
    second.file("b", b"2")
    second.file("a", b"1")
    assert first.pack() == second.pack()


@pytest.mark.parametrize("path", ["", "/init"])
def test_path_that_is_not_relative_is_refused(path):
    with pytest.raises(ValueError, match="not a path relative"):
        Initramfs().file(path, b"")
