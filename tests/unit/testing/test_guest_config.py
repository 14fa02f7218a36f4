# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from pyvmm.errors import ConfigError
from pyvmm.testing.config import GuestConfig


@pytest.mark.parametrize(
    ("nouns", "words"),
    [
        ({"kernel": Path("/Image")}, ["--kernel=/Image"]),
        ({"append": "quiet debug"}, ["--params=quiet debug"]),
        ({"disks": ["a", "b,ro"]}, ["--disk=a", "--disk=b,ro"]),
        ({"disks": "a"}, ["--disk=a"]),
        ({"isa": ["host", "-sstc"]}, ["--isa=host,-sstc"]),
        ({"rng": True}, ["--rng"]),
        ({"rng": [""]}, ["--rng"]),
        ({"rng": "rate=1M"}, ["--rng=rate=1M"]),
        ({"agent": False}, []),
        ({"disable_isa": ["sstc"]}, ["--disable-sstc"]),
        ({"disable_sbi": "hsm"}, ["--disable-sbi-hsm"]),
    ],
)
def test_nouns_become_words_of_the_command_line(nouns, words):
    assert GuestConfig(**nouns).words() == words


def test_replacing_changes_forgets_and_leaves_the_first_alone():
    first = GuestConfig(mem="1G", cpus=2)
    assert first.replace(mem=None, cpus=4).values() == {"cpus": 4}
    assert first.values() == {"mem": "1G", "cpus": 2}
    assert (first.mem, first.kernel) == ("1G", None)


@pytest.mark.parametrize(
    ("noun", "sentence"),
    [("memmory", "Did you mean memory|Did you mean mem"), ("log", "own business"), ("trace_out", "own")],
)
def test_what_is_no_noun_is_refused(noun, sentence):
    with pytest.raises(ConfigError, match=sentence):
        GuestConfig(**{noun: "x"})
    assert not hasattr(GuestConfig(), noun)
