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
    refused={"--vnc": "--vnc is not there yet."},
    prefixes={"--disable-sbi-": ("disable_sbi", "no SBI"), "--disable-": ("disable_isa", "no ISA")},
)
WITH_REST = Command(
    "exec", "Run a command.", COMMAND.options, positional=("kernel", "KERNEL"), rest="command"
)


@pytest.mark.parametrize("words", [["-m", "5"], ["-m5"], ["--mem", "5"], ["--mem=5"], ["-m=5"]])
def test_parse_takes_a_value_in_every_usual_spelling(words):
    assert COMMAND.parse(words) == {"mem": "5"}


def test_parse_collects_flags_lists_families_and_positionals():
    words = ["Image", "-q", "--disk", "a", "--disk=b", "--disable-sstc", "--disable-sbi-dbcn"]
    assert COMMAND.parse(words) == {
        "kernel": "Image",
        "quiet": True,
        "disks": ["a", "b"],
        "disable_isa": ["sstc"],
        "disable_sbi": ["dbcn"],
    }


def test_parse_leaves_the_rest_as_it_is():
    words = ["Image", "-m", "5", "--", "ls", "-l", "--", "--help"]
    assert WITH_REST.parse(words) == {
        "kernel": "Image",
        "mem": "5",
        "command": ["ls", "-l", "--", "--help"],
    }


@pytest.mark.parametrize(
    "words", [[], ["Image"], ["uname", "-a"], ["--"], ["Image", "--"], ["--disk", "--quiet", "ls"]]
)
def test_parse_says_where_a_command_goes_that_is_missing(words):
    with pytest.raises(UsageError) as caught:
        WITH_REST.parse(words)
    usage = "pyvmm exec [options] [KERNEL] -- COMMAND..."
    assert str(caught.value) == f"pyvmm exec needs a command to run, after --: {usage}"


def test_parse_says_how_a_command_is_spelled_that_came_alone():
    command = Command("lab exec", "Run it.", rest="command")
    with pytest.raises(UsageError) as caught:
        command.parse(["uname", "-a"])
    assert str(caught.value) == "The command comes after --: pyvmm lab exec -- uname -a"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--foo"], "pyvmm run has no option --foo. See pyvmm run --help."),
        (["-mem", "5"], "pyvmm run has no option -mem. Did you mean --mem? See pyvmm run --help."),
        (["--men", "5"], "pyvmm run has no option --men. Did you mean --mem? See pyvmm run --help."),
        (["-m"], "-m needs a value: -m SIZE."),
        (["--quiet=yes"], "--quiet takes no value, but got 'yes'."),
        (["--irqchip", "plik"], "--irqchip takes one of aia, plic, not 'plik'. Did you mean plic?"),
        (["a", "b"], "KERNEL was given twice: 'a' and 'b'."),
        (["--vnc"], "--vnc is not there yet."),
        (["--disk", "-q"], "--disk needs a value, and -q is an option; write --disk=-q if it is meant."),
        (
            ["-m", "--mem=5"],
            "-m needs a value, and --mem=5 is an option; write --mem=--mem=5 if it is meant.",
        ),
        (
            ["--mem", "--vnc"],
            "--mem needs a value, and --vnc is an option; write --mem=--vnc if it is meant.",
        ),
        (["-m", "--"], "-m needs a value, and -- is an option; write --mem=-- if it is meant."),
        (["-m", "--help"], "-m needs a value, and --help is an option; write --mem=--help if it is meant."),
        (
            ["-m", "--disable-zbb"],
            "-m needs a value, and --disable-zbb is an option; write --mem=--disable-zbb if it is meant.",
        ),
    ],
)
def test_parse_refuses_with_one_sentence(words, sentence):
    with pytest.raises(UsageError) as caught:
        COMMAND.parse(words)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("words", [["--mem", "-5"], ["--mem=-q"]])
def test_value_may_begin_with_a_dash(words):
    assert COMMAND.parse(words) == {"mem": words[-1].removeprefix("--mem=")}


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
    assert text.startswith("usage: pyvmm run [options] [KERNEL]\n\nRun it.\n")
    for option in COMMAND.options:
        assert ", ".join(option.names) in text
        assert option.help in text
    assert "--irqchip aia|plic" in text
    assert "  --disable-sbi-EXT             no SBI\n" in text


OPTIONAL = Command(
    "run",
    "",
    (
        Option("--rng", key="rng", help="", many=True, value="", optional="X"),
        Option("--dry-run", key="dry_run", help="", value="text", optional="json", choices=("json",)),
    ),
    positional=("kernel", "KERNEL"),
)


def test_optional_value_comes_after_an_equals_sign_only():
    assert OPTIONAL.parse(["--rng", "--rng=rate=1M"]) == {"rng": ["", "rate=1M"]}
    assert "--rng[=X]" in OPTIONAL.help()


@pytest.mark.parametrize("words", [["--rng", "rate=1M"], ["k", "--rng", "rate=1M"]])
def test_optional_value_after_a_blank_is_told_from_a_kernel(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        OPTIONAL.parse(words)
    assert str(caught.value) == ("There is no file rate=1M; if that belongs to --rng, write --rng=rate=1M.")


def test_kernel_may_follow_an_option_with_an_optional_value(tmp_path):
    kernel = tmp_path / "Image"
    kernel.touch()
    assert OPTIONAL.parse(["--rng", str(kernel)]) == {"rng": [""], "kernel": str(kernel)}
    assert OPTIONAL.parse(["--dry-run", "not-json"]) == {"dry_run": "text", "kernel": "not-json"}
