# SPDX-License-Identifier: Apache-2.0
"""pyvmm.toml: what counts, what adds up, and a sentence for every mistake in it."""

import os

import pytest

from pyvmm import profiles
from pyvmm.config import MachineConfig
from pyvmm.errors import ConfigError


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Writes ``pyvmm.toml`` into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")

    def write(text):
        (tmp_path / "pyvmm.toml").write_text(text)
        return tmp_path

    return write


FILE = """
[defaults]
mem = "512M"
cpus = 2
disks = ["base.img"]
rng = true
disable_isa = ["sstc"]

[profile.net]
mem = 1024
nets = ["user"]
disks = ["net.img,ro"]
rng = ["rate=1M"]
timeout = 1.5
"""


def test_defaults_count_without_a_profile(here):
    here(FILE)
    assert profiles.load() == {
        "mem": "512M",
        "cpus": 2,
        "disks": ["base.img"],
        "rng": [""],
        "disable_isa": ["sstc"],
    }


def test_profile_replaces_values_and_adds_devices(here):
    here(FILE)
    found = profiles.load(profile="net")
    assert (found["mem"], found["cpus"], found["rng"]) == (1024, 2, ["rate=1M"])
    assert found["disks"] == ["base.img", "net.img,ro"]


def test_what_is_given_counts_over_the_file(here):
    here(FILE)
    given = {"mem": "64M", "disks": ["mine.img"], "rng": [], "disable_isa": ["zbb"], "host": "lab"}
    found = profiles.resolve(given, profile="net")
    assert (found["mem"], found["timeout"], found["host"]) == ("64M", 1.5, "lab")
    assert found["disks"] == ["base.img", "net.img,ro", "mine.img"]
    assert found["rng"] == []
    assert found["disable_isa"] == ["sstc", "zbb"]


def test_file_of_another_folder_has_its_paths_from_there(here):
    folder = here("")
    (folder / "sub").mkdir()
    (folder / "sub/other.toml").write_text(
        """
[defaults]
kernel = "Image"
initrd = "/boot/initrd"
log = "~/log"
mem_backend = "hugetlbfs:huge"
disks = ["a.img,ro", "file=b.img"]
p9 = ["src,tag,rw"]
ports = ["one,unix=sock"]
devices = ["blk,c.img,id=x", "edu"]
nets = ["tap,tap=tap0"]
params = "init=/bin/sh"
"""
    )
    assert profiles.load("sub/other.toml") == {
        "kernel": "sub/Image",
        "initrd": "/boot/initrd",
        "log": "/home/me/log",
        "mem_backend": "hugetlbfs:sub/huge",
        "disks": ["sub/a.img,ro", "file=sub/b.img"],
        "p9": ["sub/src,tag,rw"],
        "ports": ["one,unix=sub/sock"],
        "devices": ["blk,sub/c.img,id=x", "edu"],
        "nets": ["tap,tap=tap0"],
        "params": "init=/bin/sh",
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("mem = ", "pyvmm.toml is not TOML: Invalid value (at "),
        ("mem = '1G'", "pyvmm.toml: mem stands above the tables; put it under [defaults]."),
        ("[default]", "has [defaults] and [profile.NAME], but no [default]. Did you mean defaults?"),
        ("defaults = 1", "pyvmm.toml: defaults is a table: write [defaults] above its keys."),
        ("profile = 1", "pyvmm.toml: write [profile.NAME] above the keys of each profile."),
        ("[profile]\nmem = 5", "pyvmm.toml: profile.mem is a table: write [profile.mem] above its keys."),
        ("[defaults]\nmen = '1G'", "pyvmm.toml: [defaults] has no key 'men'. Did you mean mem?"),
        ("[defaults]\nnetwork = 'user'", "[defaults] has no key 'network'. Did you mean nets?"),
        ("[profile.a]\nappend = 'x'", "[profile.a] has no key 'append'. Did you mean params?"),
        ("[profile.a]\nzzzz = 'x'", "pyvmm.toml: [profile.a] has no key 'zzzz'."),
        ("[defaults]\nkernel = 5", "pyvmm.toml: [defaults]: kernel takes a text in quotes."),
        ("[defaults]\nmem = 1.5", "mem takes a text in quotes, or a whole number."),
        ("[defaults]\nmem = true", "mem takes a text in quotes, or a whole number."),
        ("[defaults]\ntimeout = 2001-01-01", "timeout takes a text in quotes, or a number."),
        ("[defaults]\ndisks = 'a'", 'disks takes a list of texts: ["...", "..."].'),
        ("[defaults]\ndisks = [1]", 'disks takes a list of texts: ["...", "..."].'),
        ("[defaults]\ndisks = true", 'disks takes a list of texts: ["...", "..."].'),
        ("[defaults]\nrng = 'x'", 'rng takes true, or a list of texts: ["...", "..."].'),
    ],
)
def test_mistake_in_the_file_is_one_sentence_with_its_name(here, text, sentence):
    here(text)
    with pytest.raises(ConfigError) as caught:
        profiles.load()
    assert str(caught.value).startswith("pyvmm.toml")
    assert sentence in str(caught.value)


def test_profile_that_is_not_there_is_refused_with_the_nearest_name(here):
    here(FILE)
    with pytest.raises(ConfigError, match=r"^pyvmm.toml has no profile 'met'. Did you mean net\?$"):
        profiles.load(profile="met")
    with pytest.raises(ConfigError, match=r"^pyvmm.toml has no profile 'xyzzy'. It has net.$"):
        profiles.load(profile="xyzzy")


def test_file_that_cannot_be_read_is_one_sentence(here):
    folder = here("")
    (folder / "latin").write_bytes(b"# \xe9\n")
    with pytest.raises(ConfigError, match=r"^none.toml cannot be read: No such file or directory.$"):
        profiles.load("none.toml")
    with pytest.raises(ConfigError, match=r"^latin is not UTF-8 text, as TOML is.$"):
        profiles.load("latin")
    os.remove("pyvmm.toml")
    with pytest.raises(ConfigError, match=r"^There is no pyvmm.toml in this folder; name the file with"):
        profiles.load(profile="net")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("irqchip = 'plik'", "pyvmm.toml: --irqchip takes one of"),
        ("mem = 'much'", "pyvmm.toml: --mem takes a size"),
        ("devices = ['sound']", "pyvmm.toml: There is no device 'sound'."),
        ("trace_out = 'x'", "pyvmm.toml: --trace-out needs --trace"),
    ],
)
def test_value_that_cannot_be_names_the_file(here, line, sentence):
    here(f"[defaults]\n{line}")
    with pytest.raises(ConfigError) as caught:
        profiles.resolve({"cpus": "1"})
    assert str(caught.value).startswith(sentence)


def test_mistake_on_the_command_line_does_not_blame_the_file(here):
    here(FILE)
    with pytest.raises(ConfigError, match=r"^--mem takes a size"):
        profiles.resolve({"mem": "much"})


@pytest.mark.parametrize("key", profiles.KEYS)
def test_every_keyword_of_a_machine_says_what_it_takes(key):
    assert profiles.describe(key)
    assert key in MachineConfig.__init__.__kwdefaults__


@pytest.mark.parametrize("key", [*profiles.ADDING, *profiles.PATHS])
def test_keys_that_are_treated_specially_exist(key):
    assert key in profiles.KEYS
