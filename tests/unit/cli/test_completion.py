# SPDX-License-Identifier: Apache-2.0
"""Completion in a real bash, the syntax of the other shells' scripts, and the manual page."""

import os
import shutil
import subprocess
import tempfile

import pytest

from pyvmm import cli
from pyvmm.cli import completion, man, tables
from pyvmm.control import runfolder


@pytest.fixture
def complete(tmp_path):
    """What bash offers for a command line that ends where the cursor is."""
    (tmp_path / "script").write_text(completion.bash())
    (tmp_path / "here").mkdir()

    def run(*words, env=None):
        listed = " ".join(f"'{word}'" for word in words)
        program = f"""
            source {tmp_path / "script"}
            complete -p pyvmm >/dev/null || exit 3
            COMP_WORDS=({listed}) COMP_CWORD={len(words) - 1}
            _pyvmm
            [[ ${{#COMPREPLY[@]}} -eq 0 ]] || printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(
            ["bash", "--norc", "-c", program],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path / "here",
            env={**os.environ, **(env or {})},
        )
        assert done.stderr == ""
        return done.stdout.splitlines()

    return run


def test_commands_complete(complete):
    assert complete("pyvmm", "do") == ["doctor"]
    assert set(cli.COMMANDS) < set(complete("pyvmm", ""))


def test_word_that_is_no_command_is_left_as_it_is(complete):
    assert complete("pyvmm", "zzz") == []


def test_subcommands_complete(complete):
    assert complete("pyvmm", "lab", "st") == ["start", "stop", "status"]
    assert complete("pyvmm", "lab", "stop", "--fl") == ["--flavour"]


def test_options_complete(complete):
    assert complete("pyvmm", "run", "--irq") == ["--irqchip"]
    assert complete("pyvmm", "dtb", "--zzz") == []


@pytest.mark.parametrize("words", [["--irqchip", "a"], ["--irqchip", "=", "a"]])
def test_choices_complete(complete, words):
    assert complete("pyvmm", "run", *words) == ["auto", "aia", "aplic"]


def test_choices_complete_right_after_the_equals_sign(complete):
    assert complete("pyvmm", "run", "--virtio-transport", "=") == ["pci", "mmio"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["lab", ":"], ["aia", "plic"]),
        (["lab", ":", "p"], ["plic"]),
        (["=", "lab", ":", "p"], ["plic"]),
        (["la"], ["lab", "lab:aia", "lab:plic"]),
    ],
)
def test_choices_with_a_colon_complete(complete, words, offered):
    assert complete("pyvmm", "run", "--host", *words) == offered


def test_optional_value_completes_after_an_equals_sign_only(complete, tmp_path):
    (tmp_path / "here/Image").touch()
    assert complete("pyvmm", "run", "--dry-run", "=") == ["json"]
    assert complete("pyvmm", "run", "--dry-run", "") == ["Image"]


def test_argument_that_is_one_of_some_words_completes(complete):
    assert complete("pyvmm", "completion", "") == ["bash", "zsh", "fish"]


def test_files_complete_in_the_guests_command(complete, tmp_path):
    (tmp_path / "here/--irqchip").touch()
    assert complete("pyvmm", "exec", "Image", "--", "cat", "--irq") == ["--irqchip"]
    assert complete("pyvmm", "exec", "Image", "--", "cat", "--ver") == []


def test_files_and_folders_complete(complete, tmp_path):
    (tmp_path / "here/Image").touch()
    (tmp_path / "here/Idir").mkdir()
    assert sorted(complete("pyvmm", "run", "--kernel", "I")) == ["Idir", "Image"]
    assert sorted(complete("pyvmm", "run", "I")) == ["Idir", "Image"]
    assert complete("pyvmm", "run", "--9p", "I") == ["Idir"]


def test_values_that_nobody_can_guess_do_not_complete(complete, tmp_path):
    (tmp_path / "here/5").touch()
    assert complete("pyvmm", "run", "--mem", "") == []


def test_profiles_complete(complete, tmp_path):
    (tmp_path / "here/pyvmm.toml").write_text('[defaults]\n[profile.net]\n[profile."two"]\n')
    assert complete("pyvmm", "run", "--profile", "") == ["net", "two"]


def test_name_that_bash_would_run_is_not_offered(complete, tmp_path):
    (tmp_path / "here/pyvmm.toml").write_text('[profile."$(touch ran)"]\n[profile.net]\n')
    assert complete("pyvmm", "run", "--profile", "") == ["net"]
    (tmp_path / "run/$(touch ran)").mkdir(parents=True)
    (tmp_path / "run/$(touch ran)/lock").touch()
    assert complete("pyvmm", "stop", "", env={"PYVMM_RUN_DIR": str(tmp_path / "run")}) == []
    assert not (tmp_path / "here/ran").exists()


def guest_commands():
    return [name for name, one in tables.commands().items() if tables.positional_kind(one) == tables.GUEST]


def test_commands_for_guests_take_their_names():
    assert {"attach", "debug", "inspect", "pause", "stop"} <= set(guest_commands())


@pytest.mark.parametrize("variable", ["PYVMM_RUN_DIR", "XDG_RUNTIME_DIR"])
def test_running_guests_complete(complete, monkeypatch, variable):
    for name in ("PYVMM_RUN_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    with tempfile.TemporaryDirectory() as folder:  # a short path, for sockets
        monkeypatch.setenv(variable, folder)
        held = [runfolder.claim(name) for name in ("alpha", "beta")]
        assert complete("pyvmm", "stop", "") == ["alpha", "beta"]
        assert complete("pyvmm", "stop", "b") == ["beta"]
        for instance in held:
            instance.release()
        assert complete("pyvmm", "stop", "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_is_in_the_language_of_its_shell(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run(
        [shell, "-n", "/dev/stdin"], input=script, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_colons_of_choices_are_not_those_of_zsh():
    assert "(auto local lab lab\\:aia lab\\:plic)" in completion.zsh()


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("pyvmm doct", ["doctor"]),
        ("pyvmm lab st", ["start", "status", "stop"]),
        ("pyvmm run --irqchip ", ["aia", "aplic", "auto", "plic"]),
        ("pyvmm run --irq", ["--irqchip"]),
        ("pyvmm run --profile ", ["net"]),
        ("pyvmm completion ", ["bash", "fish", "zsh"]),
        ("pyvmm attach --host=local run --irq", []),
        ("pyvmm run stop --al", []),
    ],
)
def test_fish_completes(tmp_path, line, offered):
    (tmp_path / "script").write_text(completion.fish())
    (tmp_path / "pyvmm.toml").write_text("[profile.net]\n")
    program = f"source script; complete -C '{line}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert [one.split("\t")[0] for one in done.stdout.splitlines()] == offered


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["csh"], "pyvmm completion takes one of bash, zsh, fish, not 'csh'. Did you mean zsh?"),
        ([], "pyvmm completion takes one of bash, zsh, fish, not ''."),
    ],
)
def test_other_shells_are_refused(words, sentence, capfd):
    assert cli.main(["completion", *words]) == 125
    assert capfd.readouterr().err == f"pyvmm: {sentence}\n"


def test_manual_page_has_every_option():
    text = man.page().replace("\\-", "-")
    for command in tables.commands().values():
        assert f".SS pyvmm {command.name}" in text
        for option in command.options:
            assert f".B {option.usage()}\n" in text
        for prefix in command.prefixes:
            assert f".B {prefix}EXT\n" in text


def test_manual_page_is_proper_roff(capsys):
    assert cli.main(["man"]) == 0
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww"],
        input=capsys.readouterr().out,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "virtual machine monitor" in done.stdout
