# SPDX-License-Identifier: Apache-2.0
import pytest

from pyvmm.cli.parser import Command, HelpRequested, Option, UsageError

COMMAND = Command(
    "run",
    "Run it.",
    (
        Option("-m", "--mem", key="mem", metavar="SIZE", help="memory"),
        Option("-q", "--quiet", key="quiet", help="say nothing"),
        Option("--irqchip", key="irqchip", metavar="KIND", choices=("aia", "plic"), help="chip"),
        Option("--disk", key="disks", metavar="FILE", many=True, help="a disk"),
    ),
    positional=("kernel", "KERNEL"),
    rest="command",
    refused={"--vnc": "--vnc is not there yet."},
    prefixes={"--disable-sbi-": "disable_sbi", "--disable-": "disable_isa"},
)


@pytest.mark.parametrize("words", [["-m", "5"], ["-m5"], ["--mem", "5"], ["--mem=5"], ["-m=5"]])
def test_parse_takes_a_value_in_every_usual_spelling(words):
    assert COMMAND.parse(words) == {"mem": "5"}


def test_parse_collects_flags_lists_families_positionals_and_the_rest():
    words = [
        "Image",
        "-q",
        "--disk",
        "a",
        "--disk=b",
        "--disable-sstc",
        "--disable-sbi-dbcn",
        "--",
        "ls",
        "-l",
    ]
    assert COMMAND.parse(words) == {
        "kernel": "Image",
        "quiet": True,
        "disks": ["a", "b"],
        "disable_isa": ["sstc"],
        "disable_sbi": ["dbcn"],
        "command": ["ls", "-l"],
    }


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--men", "5"], "pyvmm run has no option --men. Did you mean --mem? See pyvmm run --help."),
        (["-m"], "-m needs a value: -m SIZE."),
        (["--quiet=yes"], "--quiet takes no value, but got 'yes'."),
        (["--irqchip", "plik"], "--irqchip takes one of aia, plic, not 'plik'. Did you mean plic?"),
        (["a", "b"], "KERNEL was given twice: 'a' and 'b'."),
        (["--vnc"], "--vnc is not there yet."),
    ],
)
def test_parse_refuses_with_one_sentence(words, sentence):
    with pytest.raises(UsageError) as caught:
        COMMAND.parse(words)
    assert str(caught.value) == sentence


def test_parse_without_positionals_refuses_an_argument():
    with pytest.raises(UsageError, match="takes no argument, but got 'x'"):
        Command("version", "It.").parse(["x"])


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_parse_stops_at_a_request_for_help(word):
    with pytest.raises(HelpRequested):
        COMMAND.parse(["-q", word, "--nonsense"])


def test_words_leave_out_a_flag_that_is_off():
    assert COMMAND.words({"quiet": False, "mem": "5"}) == ["--mem=5"]


def test_help_lists_every_option_with_its_value():
    text = COMMAND.help()
    assert text.startswith("usage: pyvmm run [options] [KERNEL] -- COMMAND...\n\nRun it.\n")
    for option in COMMAND.options:
        assert ", ".join(option.names) in text
        assert option.help in text
    assert "--irqchip aia|plic" in text


def test_optional_value_comes_after_an_equals_sign_only():
    command = Command("run", "", [Option("--rng", key="rng", help="", many=True, value="", optional="X")])
    assert command.parse(["--rng", "--rng=rate=1M"]) == {"rng": ["", "rate=1M"]}
    with pytest.raises(UsageError):
        command.parse(["--rng", "rate=1M"])
    assert "--rng[=X]" in command.help()
