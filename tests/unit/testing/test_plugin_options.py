# SPDX-License-Identifier: Apache-2.0
"""The plugin's options: wherever they are said, and what becomes of them."""

import pytest

from pyvmm import pytest_plugin
from pyvmm.testing import session as sessions
from pyvmm.testing.settings import Settings

# Option: a value, the attribute of Settings, and what that is then.
SAID = {
    "kernel": ("Image", "kernels", ["Image"]),
    "initrd": ("initrd.cpio", "initrd", "initrd.cpio"),
    "mem": ("1G", "mem", "1G"),
    "cpus": ("4", "cpus", "4"),
    "config": ("other.toml", "config_file", "other.toml"),
    "profile": ("net", "profile", "net"),
    "host": ("lab:plic", "where", "lab:plic"),
    "keep": ("all", "keep", "all"),
    "console": ("live", "console", "live"),
    "timeout_scale": ("2.5", "scale", 2.5),
    "max_parallel": ("3", "max_parallel", 3),
    "trace": ("mmio", "trace", "mmio"),
    "interact": ("1", "interact", True),
    "require_kvm": ("yes", "require_kvm", True),
    "artifacts": ("left", "artifacts", None),
}


def test_every_option_is_looked_at_here():
    assert {name for name, _, _ in pytest_plugin._OPTIONS} == {*SAID}


@pytest.mark.parametrize("name", SAID)
def test_option_is_an_ini_key_and_an_environment_variable(pytester, monkeypatch, name):
    value, attribute, wanted = SAID[name]
    if name == "artifacts":
        wanted = pytester.path / value
    flag = "" if isinstance(wanted, bool) else f"={value}"
    monkeypatch.delenv(f"VMM_{name.upper()}", raising=False)
    by_option = pytester.parseconfig(f"--vmm-{name.replace('_', '-')}{flag}")
    assert getattr(Settings(by_option), attribute) == wanted
    with monkeypatch.context() as patch:
        patch.setenv(f"VMM_{name.upper()}", value)
        assert getattr(Settings(pytester.parseconfig()), attribute) == wanted
    pytester.makeini(f"[pytest]\nvmm_{name} = {value}\n")
    assert getattr(Settings(pytester.parseconfig()), attribute) == wanted


def test_command_line_counts_before_the_environment(pytester, monkeypatch):
    monkeypatch.setenv("VMM_MEM", "32M")
    monkeypatch.setenv("VMM_KERNEL", "other")
    settings = Settings(pytester.parseconfig("--vmm-mem=64M", "--vmm-kernel=one", "--vmm-kernel=two"))
    assert (settings.mem, settings.kernels) == ("64M", ["one", "two"])


def test_kernels_of_one_name_are_told_apart_by_their_folders(pytester):
    for folder in ("6.12", "7.0"):
        (pytester.path / folder / "boot").mkdir(parents=True)
        (pytester.path / folder / "boot" / "Image").touch()
    settings = Settings(pytester.parseconfig("--vmm-kernel=*/boot/Image"))
    assert list(settings.kernel_files().values()) == ["6.12/boot/Image", "7.0/boot/Image"]


def test_initrd_and_trace_are_those_of_every_guest(suite):
    (suite.path / "initrd.cpio").touch()
    suite.run("def test_it(vm_booted): pass", "--vmm-initrd=initrd.cpio", "--vmm-trace=sbi").assert_outcomes(
        passed=1
    )
    (options,) = suite.lives("begin")
    assert (options["initrd"], options["trace"]) == ("initrd.cpio", "sbi")


def test_artifacts_go_where_they_are_wanted(suite):
    suite.run("def test_it(vm_booted): pass", "--vmm-artifacts=left/here", "--vmm-keep=all")
    assert len(list((suite.path / "left/here").glob("*/console.log"))) == 1
    assert not (suite.path / ".pyvmm").exists()


def test_requirement_of_kvm_may_be_in_the_ini_file(suite, monkeypatch):
    monkeypatch.setenv("FAKE_DOCTOR", "no")
    suite.pytester.makeini("[pytest]\nvmm_require_kvm = true\n")
    result = suite.run("def test_it(vm): pass")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: guests cannot run: no /dev/kvm: modprobe kvm"])


def test_live_console_is_shown_as_it_comes_and_cannot_hurt_the_terminal(suite):
    suite.kernel("bytes 1b5b316dc3a9ff0d0a\nshell\n")
    result = suite.run("def test_it(vm_booted, console): console.expect('# ')", "--vmm-console=live", "-s")
    result.assert_outcomes(passed=1)
    assert "^[[1mé\N{REPLACEMENT CHARACTER}\n" in result.stdout.str()


def test_letters_that_are_cut_are_shown_whole_on_a_live_console(pytester, monkeypatch):
    shown = []

    class Writer:
        def write(self, text, *, flush):
            shown.append(text)

    config = pytester.parseconfigure("--vmm-console=live")
    monkeypatch.setattr(config, "get_terminal_writer", Writer)
    show = sessions.of(config)._live()
    show(b"\xc3")
    show(b"\xa9\xff\x1b")
    assert "".join(shown) == "é\N{REPLACEMENT CHARACTER}^["


def test_console_that_is_off_is_never_shown(suite):
    suite.kernel("say the words of the guest\nshell\n")
    result = suite.run(
        """
        def test_one(vm_booted, console):
            console.expect("# ")
            assert False

        def test_two(vm_booted, console):
            console.expect("never", timeout=0.01)
        """,
        "--vmm-console=off",
    )
    result.assert_outcomes(failed=2)
    assert "the words of the guest" not in result.stdout.str()
    assert len(suite.artifacts("console.log")) == 2
