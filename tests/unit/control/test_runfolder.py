# SPDX-License-Identifier: Apache-2.0
import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fakes.threads import PATIENCE, Background

from pyvmm.control import runfolder
from pyvmm.errors import ConfigError, HostError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def claim():
    held = []

    def make(name=None):
        held.append(runfolder.claim(name))
        return held[-1]

    yield make
    for instance in held:
        instance.release()


@pytest.fixture
def another_process():
    """Claims a name in another process; returns it."""
    started = []

    def start(name):
        code = "import sys\nfrom pyvmm.control import runfolder\n"
        code += f"held = runfolder.claim({name!r})\nprint(held.folder, flush=True)\nsys.stdin.read()"
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        process.folder = process.stdout.readline().decode().strip()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_claimed_guest_is_found_with_its_process(claim, run_folder):
    instance = claim("one")
    (found,) = runfolder.running()
    assert (found.name, found.pid) == ("one", os.getpid())
    assert found.folder == instance.folder == f"{run_folder}/one"
    assert instance.path("control.sock") == f"{run_folder}/one/control.sock"
    assert (Path(instance.folder) / "lock").read_text() == f"{os.getpid()}\n"


def test_released_name_leaves_nothing_and_can_be_had_again(claim):
    instance = claim("one")
    Path(instance.path("control.sock")).touch()
    instance.release()
    instance.release()
    assert not os.path.exists(instance.folder)
    assert runfolder.running() == []
    assert claim("one").name == "one"


def test_second_claim_of_a_name_is_refused_with_one_sentence(claim, another_process):
    process = another_process("one")
    with pytest.raises(ConfigError) as refused:
        claim("one")
    assert str(refused.value) == (
        f"A guest named one is running (process {process.pid}); choose another --name, or end it with: "
        "pyvmm stop one"
    )
    assert os.path.exists(process.folder)


def test_names_are_numbered_with_the_lowest_free_number(claim):
    assert [claim().name for _ in range(3)] == ["vm1", "vm2", "vm3"]
    runfolder.claim("vm9").release()
    second = claim("vm4")
    second.release()
    assert claim().name == "vm4"


def test_folder_of_a_killed_process_is_stale_and_removed_by_who_looks(another_process):
    process = another_process("one")
    (found,) = runfolder.running()
    assert found.pid == process.pid
    process.kill()
    process.wait(PATIENCE)
    assert runfolder.running() == []
    assert not os.path.exists(process.folder)


def test_guest_is_not_taken_for_an_ended_one_by_who_has_no_free_descriptor(claim, monkeypatch):
    claim("one")

    def open_file(path, *how):
        if path.endswith("/one/lock"):
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path, *how)

    real = os.open
    with monkeypatch.context() as patch, pytest.raises(OSError, match="Too many open files"):
        patch.setattr(runfolder.os, "open", open_file)
        runfolder.running()
    assert [found.name for found in runfolder.running()] == ["one"]


def test_name_of_a_killed_process_can_be_claimed(another_process, claim):
    process = another_process("one")
    Path(process.folder, "agent.sock").touch()
    process.kill()
    process.wait(PATIENCE)
    instance = claim("one")
    assert os.listdir(instance.folder) == ["lock"]


def test_of_many_claims_at_once_one_succeeds(claim):
    barrier = threading.Barrier(8)

    def race():
        barrier.wait(PATIENCE)
        try:
            return claim("one").name
        except ConfigError:
            return None

    results = [claimant.result() for claimant in [Background(race) for _ in range(8)]]
    assert sorted(results, key=str) == [None] * 7 + ["one"]


def test_many_unnamed_guests_at_once_get_a_name_each(claim):
    claimants = [Background(lambda: claim().name) for _ in range(8)]
    assert {it.result() for it in claimants} == {f"vm{number}" for number in range(1, 9)}


def test_looking_while_names_come_and_go_never_takes_one_away(claim):
    """Whoever looks takes locks for a moment: it must neither remove nor refuse what is being made."""
    done = threading.Event()

    def look():
        while not done.is_set():
            runfolder.running()

    looking = Background(look)
    for _ in range(200):
        instance = runfolder.claim("one")
        assert os.path.exists(instance.path("lock"))
        instance.release()
    done.set()
    looking.result()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-x", ".hidden", "a/b", "a b", "ä", "x" * 41, "a\nb", "_x", "x\0"]
)
def test_name_that_is_no_name_is_refused(claim, name):
    with pytest.raises(ConfigError, match="A guest cannot be called"):
        claim(name)


@pytest.mark.parametrize("name", ["a", "7", "vm-1.test_x", "x" * 40])
def test_name_may_have_letters_digits_and_some_signs(claim, name):
    assert claim(name).name == name


def test_folders_and_files_are_closed_to_others(claim, run_folder):
    before = os.umask(0)
    try:
        instance = claim("one")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(run_folder).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(instance.folder).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(instance.path("lock")).st_mode) == 0o600


def test_base_that_is_somebody_elses_is_refused(monkeypatch, claim, run_folder):
    os.mkdir(run_folder, 0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    for look in (claim, runfolder.running):
        with pytest.raises(ConfigError, match="is not a folder of this user; remove it, or set"):
            look()


def test_base_that_is_a_link_is_refused(claim, run_folder, tmp_path):
    os.symlink(tmp_path, run_folder)
    with pytest.raises(ConfigError, match="is not a folder of this user"):
        claim()


def test_base_that_others_may_write_to_is_refused(claim, run_folder):
    os.mkdir(run_folder)
    os.chmod(run_folder, 0o777)
    with pytest.raises(ConfigError, match="close it with: chmod 700"):
        claim()


def test_base_that_cannot_be_made_is_one_sentence(claim, monkeypatch):
    monkeypatch.setenv("PYVMM_RUN_DIR", "/proc/nowhere")
    with pytest.raises(HostError, match="cannot be used: No such file or directory; set PYVMM_RUN_DIR"):
        claim()


def test_base_whose_name_is_too_long_for_sockets_is_refused(claim, monkeypatch, tmp_path):
    monkeypatch.setenv("PYVMM_RUN_DIR", str(tmp_path / ("x" * 100)))
    with pytest.raises(ConfigError, match="too long a name for sockets"):
        claim()
    assert runfolder.running() == []


def test_what_is_not_a_guests_is_left_alone(claim, run_folder):
    folder = Path(run_folder, "documents")
    folder.mkdir(parents=True, mode=0o700)
    os.chmod(run_folder, 0o700)
    (folder / "thesis.tex").write_text("precious")
    Path(run_folder, "file").write_text("precious")
    claim("one")
    assert [found.name for found in runfolder.running()] == ["one"]
    assert (folder / "thesis.tex").read_text() == "precious"


def test_sockets_of_other_programs_are_left_alone(claim, run_folder):
    folder = Path(run_folder, "containers")
    folder.mkdir(parents=True)
    os.chmod(run_folder, 0o700)
    (folder / "engine.sock").touch()
    Path(run_folder, "empty").mkdir()
    claim("one")
    assert [found.name for found in runfolder.running()] == ["one"]
    assert sorted(os.listdir(run_folder)) == [".lock", "containers", "empty", "one"]
    assert (folder / "engine.sock").exists()


def test_name_of_a_process_that_was_killed_before_it_had_its_lock_can_be_claimed(claim, run_folder):
    Path(run_folder, "one").mkdir(parents=True)
    os.chmod(run_folder, 0o700)
    assert claim("one").name == "one"


def test_base_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PYVMM_RUN_DIR", "relative")
    assert runfolder.base() == os.path.abspath("relative")
    monkeypatch.delenv("PYVMM_RUN_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runfolder.base() == str(tmp_path / "pyvmm-run")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent")
    assert runfolder.base() == f"/tmp/pyvmm-run-{os.getuid()}"


def test_the_only_guest_need_not_be_named(claim):
    with pytest.raises(ConfigError, match="No guest is running; start one with pyvmm run"):
        runfolder.find()
    claim("one")
    assert runfolder.find().name == "one"
    claim("two")
    with pytest.raises(ConfigError, match="Several guests are running: name one of one, two"):
        runfolder.find()
    assert runfolder.find("two").name == "two"


def test_unknown_name_is_refused_with_the_nearest_one(claim):
    claim("build-server")
    with pytest.raises(ConfigError) as refused:
        runfolder.find("build-sever")
    assert str(refused.value) == "No guest named build-sever is running. Did you mean build-server?"
    with pytest.raises(ConfigError, match=r"No guest named xyz is running\. pyvmm ps lists those that are\."):
        runfolder.find("xyz")


def test_looking_for_guests_makes_nothing(run_folder):
    assert runfolder.running() == []
    assert not os.path.exists(run_folder)


@pytest.mark.parametrize("harm", ["removed", "opened"])
def test_name_can_be_given_back_whatever_became_of_the_folder(claim, run_folder, harm):
    instance = claim("a")
    if harm == "removed":
        shutil.rmtree(run_folder)
    else:
        os.chmod(run_folder, 0o777)
    before = len(os.listdir("/proc/self/fd"))
    instance.release()
    instance.release()
    assert len(os.listdir("/proc/self/fd")) == before - 1
