# SPDX-License-Identifier: Apache-2.0
"""Which of the machine's paths appear in the lab, and how."""

from __future__ import annotations

import subprocess

import pytest

from pyvmm.lab import share

LAB = [
    "bin",
    "etc",
    "etc/passwd",
    "proc",
    "usr",
    "usr/bin",
    "usr/lib",
    "usr/lib/python3.13",
    "usr/local",
    "usr/local/lib",
    "var",
]


def planned(tree: dict[str, list[tuple[str, str]]]) -> share.Plan:
    return share.plan(LAB, lambda path: tree.get(path, []))


def test_top_level_directory_is_bound_so_that_paths_keep_their_names():
    plan = planned({"/": [("home", "d"), ("srv", "d")]})
    assert plan.binds == ["/home", "/srv"]
    assert plan.links == {}


def test_top_level_link_and_file_are_linked():
    plan = planned({"/": [("data", "lmnt/data"), ("swap.img", "f")]})
    assert plan.links == {"/data": "mnt/data", "/swap.img": "/machine/swap.img"}


@pytest.mark.parametrize("name", ["bin", "dev", "lib", "lib64", "libx32", "machine", "proc", "run", "sys"])
def test_what_belongs_to_the_lab_is_left_alone(name):
    plan = planned({"/": [(name, "d")], f"/{name}": [("x", "f")]})
    assert plan.paths() == []


def test_directory_whose_name_only_begins_like_a_system_one_is_bound():
    assert planned({"/": [("libraries", "d")]}).binds == ["/libraries"]


def test_directory_that_both_have_gets_the_missing_children():
    tree = {"/": [("etc", "d")], "/etc": [("passwd", "f"), ("ssl", "d"), ("ld.so.cache", "f")]}
    assert planned(tree).links == {"/etc/ssl": "/machine/etc/ssl"}


def test_the_machines_programs_and_python_stay_out():
    tree = {
        "/": [("usr", "d")],
        "/usr": [("bin", "d"), ("lib", "d"), ("local", "d")],
        "/usr/bin": [("python3", "f")],
        "/usr/lib": [("python3", "d"), ("python3.13", "d"), ("gcc", "d")],
        "/usr/local": [("lib", "d"), ("src", "d")],
        "/usr/local/lib": [("python3.13", "d"), ("libfoo.so", "f")],
    }
    assert sorted(planned(tree).links) == ["/usr/lib/gcc", "/usr/local/lib/libfoo.so", "/usr/local/src"]


def test_rest_of_a_plan_leaves_out_what_is_in_place():
    plan = planned({"/": [("home", "d"), ("new", "d"), ("swap.img", "f")]}).without(["/home", "/swap.img"])
    assert plan.paths() == ["/new"]


def test_script_of_an_empty_plan_is_empty():
    assert share.Plan().script() == ""


def test_script_quotes_names_for_the_shell_and_for_the_table():
    plan = share.Plan()
    plan.binds = ["/my data", "/it's"]
    plan.links = {"/etc/a b": "/machine/etc/a b"}
    script = plan.script()
    assert r"/machine/my\040data /my\040data none bind 0 0" in script
    assert "'/my data'" in script
    assert "ln -s '/machine/etc/a b' /etc/" in script
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def test_listing_tells_directories_files_and_links_apart(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "f").touch()
    (tmp_path / "l").symlink_to("f")
    assert share.list_directory(str(tmp_path)) == [("d", "d"), ("f", "f"), ("l", "lf")]


def test_listing_of_a_directory_that_is_not_there_is_empty(tmp_path):
    assert share.list_directory(str(tmp_path / "gone")) == []
