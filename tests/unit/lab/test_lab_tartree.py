# SPDX-License-Identifier: Apache-2.0
"""Root file systems as tar archives, from packages made here."""

from __future__ import annotations

import shutil
import subprocess
import tarfile

import pytest

from pyvmm.errors import HostError
from pyvmm.lab.tartree import TarTree

pytestmark = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb")


@pytest.fixture
def deb(tmp_path):
    root = tmp_path / "package"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        "Package: thing\nVersion: 1\nArchitecture: all\nMaintainer: nobody <a@b>\nDescription: thing\n"
    )
    (root / "lib/thing").mkdir(parents=True)
    (root / "lib/thing/data").write_text("data")
    (root / "usr/share/doc/thing").mkdir(parents=True)
    (root / "usr/share/doc/thing/copyright").write_text("words")
    (root / "usr/bin").mkdir()
    (root / "usr/bin/run").write_text("#!/bin/sh")
    (root / "usr/bin/run").chmod(0o4755)
    (root / "usr/bin/again").hardlink_to(root / "usr/bin/run")
    (root / "usr/bin/link").symlink_to("run")
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", root, tmp_path / "thing.deb"],
        check=True,
        capture_output=True,
    )
    return tmp_path / "thing.deb"


@pytest.fixture
def written(tmp_path):
    """Writes a tree: its members by name."""

    def write(tree):
        tree.write(tmp_path / "root.tar")
        with tarfile.open(tmp_path / "root.tar") as tar:
            return {
                member.name: (member, tar.extractfile(member).read() if member.isreg() else None)
                for member in tar
            }

    return write


def test_package_keeps_modes_owners_and_links(deb, written):
    tree = TarTree()
    tree.add_package(deb)
    members = written(tree)
    assert (members["usr/bin/run"][0].mode, members["usr/bin/run"][0].uid) == (0o4755, 0)
    assert members["usr/bin/link"][0].linkname == "run"


def test_hard_link_becomes_a_copy(deb, written):
    tree = TarTree()
    tree.add_package(deb)
    members = written(tree)
    assert members["usr/bin/again"][1] == members["usr/bin/run"][1] == b"#!/bin/sh"
    assert members["usr/bin/again"][0].mode == 0o4755


def test_file_below_a_merged_directory_goes_to_usr(deb, written):
    tree = TarTree()
    assert "usr/lib/thing/data" in tree.add_package(deb)
    members = written(tree)
    assert members["usr/lib/thing/data"][1] == b"data"
    assert members["lib"][0].linkname == "usr/lib"


def test_directories_to_leave_out_do_not_come(deb):
    tree = TarTree(["usr/share/doc"])
    tree.add_package(deb)
    assert not [path for path in tree.paths() if path.startswith("usr/share/doc")]


def test_own_file_takes_the_place_of_a_packages(deb, written):
    tree = TarTree()
    tree.add_package(deb)
    tree.file("usr/bin/run", "mine", 0o600, group=42)
    member, data = written(tree)["usr/bin/run"]
    assert (data, member.mode, member.gid) == (b"mine", 0o600, 42)


def test_parents_of_own_files_are_made_and_come_first(written):
    tree = TarTree()
    tree.file("a/b/c", "")
    names = list(written(tree))
    assert names.index("a") < names.index("a/b") < names.index("a/b/c")


def test_package_that_is_damaged_is_refused(tmp_path):
    (tmp_path / "bad.deb").write_text("nothing")
    with pytest.raises(HostError, match=r"bad\.deb"):
        TarTree().add_package(tmp_path / "bad.deb")
