# SPDX-License-Identifier: Apache-2.0
"""--vmm-interact on a terminal of its own."""

import sys

import pexpect


def test_failed_tests_guest_is_handed_to_the_user(suite):
    suite.pytester.makepyfile(
        """
        def test_it(vm_booted, console):
            console.expect("# ")
            assert False
        """
    )
    child = pexpect.spawn(
        sys.executable,
        ["-m", "pytest", "--vmm-kernel=Image", "--vmm-interact"],
        cwd=str(suite.path),
        timeout=60,
        encoding="utf-8",
    )
    child.expect(r"is yours; Ctrl-\] goes on")
    child.sendline("echo it is me")
    child.expect("it is me\r\n")
    child.send("\x1d")
    child.expect("1 failed")
    child.expect(pexpect.EOF)
    child.close()
    assert len(suite.lives("end")) == 1


def test_guest_that_ends_meanwhile_lets_the_run_go_on(suite):
    suite.pytester.makepyfile("def test_it(vm_booted): assert False")
    child = pexpect.spawn(
        sys.executable,
        ["-m", "pytest", "--vmm-kernel=Image", "--vmm-interact"],
        cwd=str(suite.path),
        timeout=60,
        encoding="utf-8",
    )
    child.expect("is yours")
    child.sendline("off")
    child.expect("1 failed")
    child.close()


def test_without_a_terminal_nobody_is_asked(suite):
    suite.run("def test_it(vm_booted): assert False", "--vmm-interact").assert_outcomes(failed=1)
