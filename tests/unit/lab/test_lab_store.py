# SPDX-License-Identifier: Apache-2.0
"""The cache and the runtime directory."""

from __future__ import annotations

import os
import threading
import time

import pytest

from pyvmm.errors import HostError
from pyvmm.lab import store


@pytest.fixture(autouse=True)
def own_directories(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def test_build_is_made_once_and_found_again():
    calls = []

    def make(work):
        calls.append(work)
        (work / "x").write_text("done")

    first = store.build_once("kind/name", make)
    assert store.build_once("kind/name", make) == first
    assert (first / "x").read_text() == "done"
    assert len(calls) == 1


def test_failed_build_leaves_nothing_behind():
    def make(work):
        (work / "half").touch()
        raise HostError("no")

    with pytest.raises(HostError, match="no"):
        store.build_once("kind/name", make)
    assert [p.name for p in (store.cache_dir() / "kind").iterdir()] == [".name.lock"]


def test_second_builder_waits_for_the_first_and_takes_its_build():
    started, go = threading.Event(), threading.Event()
    calls, waited = [], []

    def make(work):
        calls.append(work)
        started.set()
        go.wait(10)

    def other():
        store.build_once("kind/name", make, lambda line: (waited.append(line), go.set()))

    first = threading.Thread(target=store.build_once, args=("kind/name", make))
    first.start()
    assert started.wait(10)
    second = threading.Thread(target=other)
    second.start()
    first.join(10)
    second.join(10)
    assert len(calls) == 1
    assert waited == ["waiting for another build of kind/name"]


def test_builds_that_nobody_used_for_a_week_go_with_the_next_build():
    old = store.build_once("kind/old", lambda work: None)
    recent = store.build_once("kind/recent", lambda work: None)
    os.utime(old, (time.time() - 8 * 86400,) * 2)
    os.utime(recent, (time.time() - 6 * 86400,) * 2)
    store.build_once("kind/new", lambda work: None)
    assert (old.exists(), recent.exists()) == (False, True)


def test_use_of_a_build_keeps_it():
    old = store.build_once("kind/old", lambda work: None)
    os.utime(old, (time.time() - 8 * 86400,) * 2)
    store.build_once("kind/old", lambda work: None)
    store.build_once("kind/new", lambda work: None)
    assert old.exists()


def test_scratch_directory_is_gone_also_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="x"), store.scratch(tmp_path) as temp:
        (temp / "file").touch()
        raise ValueError("x")
    assert not temp.exists()


def test_runtime_directory_is_closed_to_others(tmp_path):
    (tmp_path / "pyvmm").mkdir(mode=0o755)
    assert store.runtime_dir().stat().st_mode & 0o777 == 0o700


def test_runtime_directory_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "pyvmm").symlink_to("elsewhere")
    with pytest.raises(HostError, match="belongs to somebody else"):
        store.runtime_dir()


def test_recipe_key_follows_every_part():
    assert store.recipe_key("a", ("b",)) == store.recipe_key("a", ("b",))
    assert store.recipe_key("a", ("b",)) != store.recipe_key("a", ("c",))


@pytest.mark.parametrize("text", ["", "{", "\0"])
def test_damaged_json_reads_as_none(tmp_path, text):
    (tmp_path / "f").write_text(text)
    assert store.read_json(tmp_path / "f") is None


def test_json_is_read_back_as_written(tmp_path):
    store.write_json(tmp_path / "f", {"a": [1]})
    assert store.read_json(tmp_path / "f") == {"a": [1]}


def test_lock_whose_file_was_removed_is_taken_anew(tmp_path):
    path, waiting = tmp_path / "lock", threading.Event()
    there = []

    def second():
        with store.locked(path, waiting.set):
            there.append(path.exists())

    with store.locked(path):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        path.unlink()
    thread.join(10)
    assert there == [True]
