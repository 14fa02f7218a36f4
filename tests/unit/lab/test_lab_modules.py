# SPDX-License-Identifier: Apache-2.0
"""Dependencies between kernel modules, on made-up modules."""

from __future__ import annotations

import lzma

import pytest

from pyvmm.cpio import Initramfs
from pyvmm.lab.modules import ModuleTree


@pytest.fixture
def tree(tmp_path):
    def module(name: str, depends: str, soft: str = "") -> None:
        data = b"\x7fELF\0license=GPL\0" + soft.encode() + b"depends=" + depends.encode() + b"\0name=x\0"
        (tmp_path / name).write_bytes(lzma.compress(data) if name.endswith(".xz") else data)

    module("9p.ko.xz", "9pnet,netfs")
    module("9pnet.ko", "netfs")
    module("netfs.ko", "")
    module("virtio-net.ko", "net-failover")
    module("net_failover.ko", "")
    module("ext4.ko", "jbd2", soft="softdep=pre: crypto-crc32c crypto-built-in\0")
    module("jbd2.ko", "")
    module("crc32c_generic.ko", "")
    return ModuleTree(tmp_path)


def test_load_order_puts_dependencies_first_and_each_once(tree):
    assert tree.load_order(["9p", "9pnet"]) == ["netfs", "9pnet", "9p"]


def test_hyphens_and_underscores_are_the_same(tree):
    assert (
        tree.load_order(["virtio_net"]) == tree.load_order(["virtio-net"]) == ["net_failover", "virtio_net"]
    )


def test_module_that_is_built_in_is_left_out(tree):
    assert tree.load_order(["virtio_pci"]) == []


def test_compressed_module_is_read_decompressed(tree):
    assert tree.content("9p").startswith(b"\x7fELF")


def test_module_asked_for_by_its_algorithm_comes_first(tree):
    assert tree.load_order(["ext4"]) == ["jbd2", "crc32c_generic", "ext4"]


def test_installed_modules_are_listed_with_all_they_need_in_modprobes_order(tree):
    fs = Initramfs()
    tree.install(fs, "lib/modules/7", ["9p", "ext4"])
    assert set(fs.paths()) >= {f"lib/modules/7/{name}.ko" for name in ("9p", "9pnet", "netfs", "ext4")}
    table = b"9p.ko: 9pnet.ko netfs.ko\njbd2.ko: \ncrc32c_generic.ko: \next4.ko: crc32c_generic.ko jbd2.ko\n"
    assert table in fs.pack()
