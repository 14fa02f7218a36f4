# SPDX-License-Identifier: Apache-2.0
"""What users ask for wrongly, and hosts that cannot do what they ask: each is a sentence."""

import pytest


def test_missing_kernel_is_one_sentence(suite):
    result = suite.run("def test_it(vm): vm.start()", "--vmm-kernel=Gone", kernel=False)
    result.stdout.fnmatch_lines(["--vmm-kernel: there is no file Gone"])
    result = suite.run(
        """
        import pytest

        @pytest.mark.vmm(kernel="/gone/Image")
        def test_it(vm): vm.start()
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ConfigError: /gone/Image cannot be read."])


def test_host_without_kvm_skips_with_the_doctors_sentence(suite, monkeypatch):
    monkeypatch.setenv("FAKE_DOCTOR", "no")
    result = suite.run("def test_it(vm): pass\ndef test_host(vmm_host): assert not vmm_host.kvm", "-rs")
    result.assert_outcomes(skipped=1, passed=1)
    result.stdout.fnmatch_lines(["*guests cannot run: no /dev/kvm: modprobe kvm"])


def test_host_without_kvm_fails_once_when_it_is_required(suite, monkeypatch):
    monkeypatch.setenv("FAKE_DOCTOR", "no")
    result = suite.run("def test_it(vm): pass", "--vmm-require-kvm")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: guests cannot run: no /dev/kvm: modprobe kvm"])


MISSPELT = {
    "vmm(memory='1G')": "*a guest has no 'memory'. Did you mean mem[?]",
    "vmm('1G')": "*it takes keywords only.",
    "vmm_requires(irq='aia')": "*vmm_requires has no 'irq'.*",
    "vmm_requires(irqchip='imsic')": "*irqchip takes one of aia, aplic, plic, not 'imsic'.",
    "vmm_requires(cpus='many')": "*cpus takes a whole number above 0, not 'many'.",
    "vmm_timeout()": "*it takes one number of seconds.",
    "vmm_allow_panic(1)": "*it takes keywords only.",
    "vmm_alow_panic": "*there is no such marker. Did you mean vmm_allow_panic[?]",
}


def test_misspelt_marker_is_an_error_of_the_collection(suite):
    files = {
        f"test_{number}": f"import pytest\n@pytest.mark.{marker}\ndef test_it(): pass"
        for number, marker in enumerate(MISSPELT)
    }
    suite.pytester.makepyfile(**files)
    result = suite.run("def test_it(): pass")
    result.assert_outcomes(errors=len(MISSPELT))
    result.stdout.fnmatch_lines(
        [
            line
            for number, said in enumerate(MISSPELT.values())
            for line in (f"*collecting test_{number}.py*", said)
        ]
    )
    result.stdout.no_fnmatch_line("*During handling of the above exception*")


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--vmm-keep=some", "--vmm-keep takes one of failed, all, none, not 'some'."),
        ("--vmm-host=mars", "--vmm-host takes one of auto, local, lab, lab:aia, lab:plic, not 'mars'."),
        ("--vmm-timeout-scale=-1", "--vmm-timeout-scale takes a number above 0 or auto, not '-1'."),
    ],
)
def test_wrong_option_is_one_sentence(suite, option, sentence):
    suite.run("def test_it(vm): pass", option).stdout.fnmatch_lines([sentence])


def test_options_come_from_environment_and_ini_too(suite, monkeypatch):
    monkeypatch.setenv("VMM_MEM", "32M")
    suite.pytester.makeini("[pytest]\nvmm_cpus = 3\nvmm_mem = 16M\nvmm_kernel = Image\n")
    suite.run("def test_it(vm_booted): pass", kernel=False).assert_outcomes(passed=1)
    (options,) = suite.lives("begin")
    assert (options["mem"], options["cpus"]) == ("32M", "3")


def test_guest_that_was_not_started_takes_no_commands(suite):
    result = suite.run("def test_it(vm, guest): guest.run('true')")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*GuestExited: the guest was not started: call vm.start(), *"])


def test_guest_without_an_agent_takes_no_commands(suite):
    result = suite.run(
        """
        import pytest

        @pytest.mark.vmm(agent=False)
        def test_it(vm, guest):
            vm.start()
            guest.run("true")
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ConfigError: this guest has no agent, *"])


def test_guest_is_started_once(suite):
    result = suite.run("def test_it(vm_booted): vm_booted.start()")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ConfigError: the guest test-*-1 was started already"])


def test_console_without_pexpect_says_what_to_install(suite):
    (suite.path / "pexpect.py").write_text("raise ImportError")
    result = suite.run("def test_it(console): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*needs pexpect: install it with pip install pexpect."])
