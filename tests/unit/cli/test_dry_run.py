# SPDX-License-Identifier: Apache-2.0
"""--dry-run, --config and --profile, as the command line has them."""

import contextlib
import json
import os
import subprocess
import sys

import pytest

from pyvmm import cli
from pyvmm.cli.run import COMMAND


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk.img").write_bytes(bytes(4096))
    return tmp_path


@pytest.fixture
def shown(capfd, image):
    """(exit code, what is shown, what is said) for options of run."""

    def run(*words):
        code = cli.main(["run", *words])
        return code, *capfd.readouterr()

    return run


def test_dry_run_shows_every_value_with_units_and_starts_nothing(shown, image):
    code, out, err = shown(
        image, "--dry-run", "-m", "1024", "--timeout=5m", "-d", "disk.img,ro", "-p", "quiet", "--rng"
    )
    assert (code, err) == (0, "")
    lines = [line.split(maxsplit=1) for line in out.splitlines() if line]
    assert ["kernel", image] in lines
    assert ["mem", "1G"] in lines
    assert ["timeout", "300s"] in lines
    assert "command line      console=hvc0 earlycon=sbi root=/dev/vda rw quiet\n" in out
    assert ["blk0", "file=disk.img ro=on rw=off direct=off queues=1"] in lines
    assert ["rng0"] in lines


def test_dry_run_as_json_is_for_programs(shown, image):
    code, out, _ = shown(image, "--dry-run=json", "-m", "512M", "-n", "user", "--console=serial")
    found = json.loads(out)
    assert code == 0
    assert found["schema_version"] == 1
    assert (found["config"]["kernel"], found["config"]["mem"]) == (image, 512 << 20)
    assert found["command_line"] == "console=ttyS0 earlycon=sbi"
    assert {"uart", "rtc"} <= {one["name"] for one in found["platform"]}
    assert found["devices"][0]["settings"]["mode"] == "user"


def test_dry_run_without_a_kernel_fetches_none(shown, monkeypatch):
    monkeypatch.setattr("pyvmm.lab.guests.kernel", None)
    code, out, _ = shown("--dry-run", "-d", "disk.img")
    assert code == 0
    assert "Debian's, as no kernel was named" in out
    assert "drivers=all" in out
    assert "512M" in out
    assert "root=" not in out
    assert json.loads(shown("--dry-run=json")[1])["config"]["kernel"] is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["missing", "--dry-run"], "The kernel missing does not exist"),
        (["--dry-run", "-d", "none.img"], "--disk none.img: none.img does not exist"),
        (["--dry-run", "--isa=host,+zbbb"], "KVM knows no ISA extension 'zbbb'"),
        (["--dry-run=jsn"], "--dry-run takes one of json, not 'jsn'. Did you mean json?"),
        (["--no-config", "--profile=x"], "--no-config has no meaning with --config or --profile"),
        (["--profile=x"], "There is no pyvmm.toml in this folder"),
    ],
)
def test_bad_input_is_still_found(shown, words, sentence):
    code, out, err = shown(*words)
    assert (code, out) == (125, "")
    assert err.startswith(f"pyvmm: {sentence}")
    assert err.count("\n") == 1


def test_file_in_the_folder_is_taken_profile_by_profile(shown, folder, image):
    (folder / "pyvmm.toml").write_text("[defaults]\nmem = '1G'\n[profile.two]\ncpus = 2\n")
    assert "mem               1G\n" in shown(image, "--dry-run")[1]
    assert "cpus              2\n" in shown(image, "--dry-run", "--profile=two")[1]
    assert "mem               256M\n" in shown(image, "--dry-run", "--no-config")[1]
    assert "mem               64M\n" in shown(image, "--dry-run", "-m64")[1]


def test_device_tree_knows_the_file_too(folder, capfd):
    (folder / "pyvmm.toml").write_text("[profile.two]\ncpus = 2\n")
    assert cli.main(["dtb", "--profile=two"]) == 0
    assert "cpu@1" in capfd.readouterr().out


def test_lab_gets_the_resolved_options_and_not_the_file(folder, image, monkeypatch, capfd):
    text = f"[defaults]\nkernel = '{image}'\nrng = true\n[profile.p]\nmem = 64\ndisable_isa = ['sstc']\n"
    (folder / "pyvmm.toml").write_text(text)
    got = []

    class Lab:
        def __init__(self, flavour):
            self.flavour = flavour

        def start(self, _progress):
            pass

        def forwarding(self, pairs):
            assert not pairs
            return contextlib.nullcontext()

        def run(self, words, **options):
            got.append((self.flavour, words))
            return 0

    monkeypatch.setattr("pyvmm.lab.host.Lab", Lab)
    assert cli.main(["run", "--host=lab:plic", "--profile=p", "-d", "disk.img,ro", "--quiet"]) == 0
    [(flavour, words)] = got
    assert flavour == "plic"
    assert words[:4] == ["python3", "-m", "pyvmm", "run"]
    values = COMMAND.parse(words[4:])
    wanted = {
        "kernel": image,
        "mem": "64",
        "rng": [""],
        "disks": ["disk.img,ro"],
        "disable_isa": ["sstc"],
        "host": "local",
        "no_config": True,
        "quiet": True,
    }
    assert {key: values[key] for key in wanted} == wanted
    assert "profile" not in values
    assert "config" not in values


def test_what_comes_from_the_file_is_said(folder, image, capfd, monkeypatch):
    (folder / "pyvmm.toml").write_text("[profile.p]\nmem = 64\n")
    if os.uname().machine == "riscv64":
        pytest.skip("this host would run the guest")
    assert cli.main(["run", "--host=local", "--profile=p", image]) == 126
    assert capfd.readouterr().err.startswith("pyvmm: with the options in pyvmm.toml, profile p\n")


def test_words_are_the_inverse_of_parse():
    words = ["Image", "-m5", "--rng", "--rng=rate=1M", "-d", "a", "--disable-sbi-dbcn", "-q", "--dry-run"]
    values = COMMAND.parse(words)
    assert COMMAND.parse(COMMAND.words(values)) == values


def test_dry_run_shows_names_that_are_no_text(image, folder):
    words = [sys.executable, "-m", "pyvmm", "run", "--dry-run", image, "-p", b"x\xff"]
    env = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(words, capture_output=True, check=False, env=env, cwd=folder)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\nparams            x\\udcff\n" in done.stdout
