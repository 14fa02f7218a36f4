# SPDX-License-Identifier: Apache-2.0
"""Pinned packages, and what is done without them: apt is a script here."""

from __future__ import annotations

import importlib.util
import re
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

from pyvmm.errors import HostError
from pyvmm.lab import packages, pins

ROOT = Path(__file__).resolve().parents[3]
POOL = "pool/main/b/busybox"
OLD = {
    "name": "busybox",
    "version": "1:1",
    "architecture": "riscv64",
    "path": f"{POOL}/busybox_1_riscv64.deb",
    "sha256": "1" * 64,
}
NEW = OLD | {"version": "1:2", "path": f"{POOL}/busybox_2_riscv64.deb", "sha256": "2" * 64}
SHOWN = (
    "Package: busybox\nVersion: 1:2\nArchitecture: riscv64\nDescription: x\n more\n"
    f"Filename: {NEW['path']}\nSHA256: {NEW['sha256']}\n\n"
)
# Files are those of a mirror: its pool, and the indexes that are in order.
HELPER = """
while [ "$1" != download-file ]; do shift; done; shift
while [ $# -gt 0 ]; do
    echo "helper $1 $3" >>LOG
    cp "MIRROR${1#http://mirror.example/debian}" "$2" 2>/dev/null || {
        echo "E: Failed to fetch $1  404  Not Found." >&2; exit 100
    }
    shift 3
done
"""
GET = """
suite=$(sed -n 's/^Suites: //p' "$(dirname "$APT_CONFIG")/etc/sources.list.d/lab.sources" 2>/dev/null)
case " $* " in
*" update "*) echo "update $suite" >>LOG
    [ -e MIRROR/dists/$suite ] || { echo "E: Mirror sync in progress? [IP: x]" >&2; exit 100; };;
*" --simulate "*) echo "Inst busybox (1:2 Debian:13/stable [riscv64])";;
*" download "*) echo "download $suite" >>LOG; touch busybox_1%3a2_riscv64.deb;;
esac
"""


def script():
    """scripts/pin-packages, which knows every build."""
    loader = SourceFileLoader("pin_packages", str(ROOT / "scripts/pin-packages"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("pin_packages", loader))
    loader.exec_module(module)
    return module


SCRIPT = script()


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror's folder, with programs that pretend to be apt's; ``log`` in it has what was asked of them."""
    folder = tmp_path / "mirror"
    (folder / POOL).mkdir(parents=True)
    (folder / "dists").mkdir()
    (folder / "log").touch()
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (
        ("apt-get", GET),
        ("apt-cache", f"cat <<'END'\n{SHOWN}END\n"),
        ("apt-config", ""),
        ("apt-helper", HELPER),
        ("dpkg-deb", ""),
    ):
        path = programs / name
        path.write_text("#!/bin/sh\n" + text.replace("LOG", f"{folder}/log").replace("MIRROR", str(folder)))
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv(packages.MIRROR_VARIABLE, "http://mirror.example/debian")
    monkeypatch.setattr(packages, "_APT_HELPER", str(programs / "apt-helper"))
    monkeypatch.setattr(packages, "keyring", lambda: Path("/keys"))
    return folder


def pin(monkeypatch, request, **changes):
    entry = {"request": request.wanted() | changes, "suite": "trixie", "packages": [OLD]}
    monkeypatch.setattr(pins, "read", lambda: {request.build: entry})


def asked(mirror):
    return (mirror / "log").read_text().splitlines()


REQUEST = pins.Request("guests/busybox", ("busybox",))
TWO_SUITES = pins.Request("kernels/7", ("busybox",), suites=(("backports", True), ("sid", True)))


def test_pinned_package_is_downloaded_by_its_hash_without_an_index(mirror, monkeypatch, tmp_path):
    pin(monkeypatch, REQUEST)
    (mirror / OLD["path"]).write_text("old")
    lines = []
    (deb,), found = REQUEST.fetch(tmp_path / "scratch", lines.append)
    assert deb.read_text() == "old"
    assert asked(mirror) == [f"helper http://mirror.example/debian/{OLD['path']} SHA256:{OLD['sha256']}"]
    assert found == {"suite": "trixie", "packages": [OLD]}
    assert lines == ["downloading 1 packages (trixie)"]


def test_package_that_left_the_pool_is_replaced_by_the_newest(mirror, monkeypatch, tmp_path):
    pin(monkeypatch, REQUEST)
    (mirror / "dists/trixie").touch()
    lines = []
    (deb,), found = REQUEST.fetch(tmp_path / "scratch", lines.append)
    assert deb.name == "busybox_1%3a2_riscv64.deb"
    assert deb.exists()
    assert found == {"suite": "trixie", "packages": [NEW]}
    assert asked(mirror)[1:] == ["update trixie", "download trixie"]
    assert re.fullmatch(
        r"The packages pinned for guests/busybox cannot be had \(.*404.*\): taking the newest\.", lines[1]
    )


def test_pin_of_another_request_is_not_taken(mirror, monkeypatch, tmp_path):
    pin(monkeypatch, REQUEST, names=["busybox-static"])
    (mirror / OLD["path"]).write_text("old")
    (mirror / "dists/trixie").touch()
    assert REQUEST.fetch(tmp_path / "scratch")[1]["packages"] == [NEW]


def test_suite_out_of_step_is_told_with_the_one_that_is_tried_next(mirror, monkeypatch, tmp_path):
    monkeypatch.setattr(pins, "read", dict)
    (mirror / "dists/sid").touch()
    lines = []
    assert TWO_SUITES.fetch(tmp_path / "scratch", lines.append)[1]["suite"] == "sid"
    assert lines[0] == (
        "Debian's backports (riscv64) cannot be used now: Mirror sync in progress? [IP: x]. Trying sid."
    )


def test_last_suite_out_of_step_says_what_to_do(mirror, monkeypatch, tmp_path):
    monkeypatch.setattr(pins, "read", dict)
    with pytest.raises(HostError, match=r"sid .* Try again later, or set PYVMM_DEBIAN_MIRROR to another"):
        TWO_SUITES.fetch(tmp_path / "scratch")


def test_other_pins_are_another_recipe(monkeypatch):
    pin(monkeypatch, REQUEST)
    pinned = repr(REQUEST)
    monkeypatch.setattr(pins, "read", dict)
    assert repr(REQUEST) != pinned


@pytest.mark.parametrize("build", SCRIPT.REQUESTS)
def test_build_is_pinned_for_what_it_asks(build):
    assert SCRIPT.REQUESTS[build].pin(), f"run scripts/pin-packages {build}"


def test_file_of_pins_has_the_known_builds_as_the_script_writes_them():
    assert sorted(pins.read()) == sorted(SCRIPT.REQUESTS)
    assert pins.FILE.read_text() == pins.text(pins.read())


def test_pinned_package_is_a_file_of_the_pool_with_a_sha256():
    for entry in pins.read().values():
        for package in entry["packages"]:
            assert re.fullmatch(r"pool/main/[\w.+~/-]+\.deb", package["path"])
            assert re.fullmatch(r"[0-9a-f]{64}", package["sha256"])
