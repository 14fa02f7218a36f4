# SPDX-License-Identifier: Apache-2.0
"""How tests fail when guests do, and what their reports say."""

import pytest

PANIC = "say Linux version 6.99 (fake)\npanic\nstay\n"


def test_panic_ends_an_expect_at_once(suite):
    suite.kernel(PANIC)
    result = suite.run(
        """
        def test_it(vm, console):
            vm.start()
            console.expect("login:", timeout=600)
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*GuestPanic: the guest panicked: Kernel panic - not syncing: sysrq triggered crash",
            "*awaited: 'login:', for *",
            "*Linux version 6.99 (fake)",
        ]
    )
    result.stdout.fnmatch_lines(["state: panicked", "cpu0: pc=0xffffffff80001234 ra=0x5", "artifacts:"])
    assert suite.artifacts("console.log")


def test_panic_while_booting_is_an_error_of_the_fixture(suite):
    suite.kernel(PANIC)
    result = suite.run("def test_it(vm_booted): pass")
    # The fake's agent answers even so: what counts is that nothing passes.
    assert not result.parseoutcomes().get("passed")
    result.stdout.fnmatch_lines(["*GuestPanic*"])


def test_panic_that_nobody_awaited_fails_the_test(suite):
    result = suite.run(
        """
        def test_it(vm_booted, console):
            console.sendline("panic")
            console.expect_exact("Kernel panic")
            vm_booted.log.wait_end(60, lambda: True)
        """
    )
    result.assert_outcomes(failed=1)


def test_panic_after_the_test_is_an_error_of_its_end(suite):
    suite.kernel("shell\n")
    result = suite.run(
        """
        import pytest

        @pytest.fixture
        def vm_then_panic(vm):
            yield vm
            vm.console.sendline("panic")
            vm.log.wait_end(60, lambda: True)

        def test_it(vm_then_panic, console):
            vm_then_panic.start()
            console.expect("# ")
        """
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*GuestPanic*"])


def test_allowed_panic_passes(suite):
    result = suite.run(
        """
        import pytest

        @pytest.mark.vmm_allow_panic
        def test_it(vm_booted, console):
            console.sendline("panic")
            console.expect("Kernel panic - not syncing: (.*)\\r")
            end = vm_booted.wait()
            assert (end.reason, end.exit_code) == ("panic", 255)
        """
    )
    result.assert_outcomes(passed=1)


def test_end_during_an_expect_fails_at_once_with_its_reason(suite):
    suite.kernel("say going down\nend 0 the guest powered off\n")
    result = suite.run(
        """
        def test_it(vm, console):
            vm.start()
            console.expect("login:", timeout=600)
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*GuestExited: the guest ended: the guest powered off", "*    going down"])
    result.stdout.fnmatch_lines(["state: ended (poweroff: the guest powered off)"])


def test_hang_during_an_expect_fails_at_once(suite):
    suite.kernel("say stuck\nend 254 the guest cannot go on: no memory there\n")
    result = suite.run(
        """
        def test_it(vm, console):
            vm.start()
            console.expect("login:", timeout=600)
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*GuestHang: the guest ended: the guest cannot go on: no memory there"])


def test_pyvmm_that_is_killed_is_told_from_a_guest_that_ends(suite):
    suite.kernel("say here\ndie 11\n")
    result = suite.run(
        """
        def test_it(vm, console):
            vm.start()
            console.expect("login:", timeout=600)
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*GuestExited: the guest ended: its pyvmm was killed by SIGSEGV"])


def test_silence_is_a_timeout_with_real_and_scaled_times(suite):
    suite.kernel("say only this\nstay\n")
    result = suite.run(
        """
        def test_it(vm, console):
            vm.start()
            console.expect("only")
            console.expect(["login:", "# "], timeout=0.05)
        """,
        "--vmm-timeout-scale=4",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*ConsoleTimeout: the console did not show 'login:' or '# ' within 0.2 s (0.05 s times 4)"]
    )


def test_line_that_is_almost_what_was_awaited_is_marked(suite):
    suite.kernel("say smp: Brought up 1 node, 1 CPU\nsay other\nstay\n")
    result = suite.run(
        """
        def test_it(vm, console):
            vm.start()
            console.expect(r"Brought up (\\d) node, 2 CPUs", timeout=0.1)
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E  *>   smp: Brought up 1 node, 1 CPU", "E  *    other"])


def test_time_limit_of_a_test_holds_for_all_its_waits(suite):
    suite.kernel("stay\n")
    result = suite.run(
        """
        import pytest

        @pytest.mark.vmm_timeout(0.1)
        @pytest.mark.parametrize("wait", [
            lambda vm: vm.console.expect("never"),
            lambda vm: vm.wait(),
            lambda vm: vm.guest.run("tail --pid=$PPID -f /dev/null"),
            lambda vm: vm.guest.wait_for("false"),
            lambda vm: vm.guest.put(b"", "/stuck"),
            lambda vm: vm.guest.get("/stuck"),
        ])
        def test_it(vm, wait):
            vm.start()
            wait(vm)
        """
    )
    result.assert_outcomes(failed=6)
    result.stdout.fnmatch_lines(["*ConsoleTimeout*", "*GuestTimeout: the guest did not end*"])


def test_pexpects_own_end_and_timeout_still_work(suite):
    suite.kernel("say last words\nend 0 the guest powered off\n")
    result = suite.run(
        """
        import pexpect

        def test_it(vm, console):
            vm.start()
            assert console.expect(["never", pexpect.EOF]) == 1
            assert "last words" in console.before

        def test_timeout(vm_factory):
            vm = vm_factory()
            assert vm.console.expect_exact(["never", pexpect.TIMEOUT], timeout=0.01) == 1
        """
    )
    result.assert_outcomes(passed=2)


def test_flood_of_escapes_and_bad_utf8_breaks_nothing(suite):
    suite.kernel("say begin\nflood\n")
    result = suite.run(
        """
        import os

        def test_it(vm, console):
            vm.start()
            console.expect("spam")
            for _ in range(1000):
                console.expect("\\ufffd")
            console.expect("never", timeout=2)
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ConsoleTimeout*"])
    assert "\x1b[31m\N{REPLACEMENT CHARACTER}" not in result.stdout.str()
    result.stdout.fnmatch_lines(["*^[[][[]31m\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} spam ^G"])
    (log,) = suite.artifacts("console.log")
    with log.open("rb") as file:
        assert b"\x1b[31m\xff\xfe spam" in file.read(1 << 20)


def test_module_whose_guest_died_skips_the_rest_with_the_reason(suite):
    result = suite.run(
        """
        import pexpect

        def test_one(vm_module, console):
            console.sendline("off")
            console.expect(pexpect.EOF)

        def test_two(vm_module, guest): guest.check("true")
        """,
        "-rs",
    )
    result.assert_outcomes(failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*the guest of this module is gone: the guest ended: the guest powered off"])


def test_last_lines_of_the_trace_are_in_the_report(suite):
    lines = [f"[    0.{number:06}] cpu0   uart.THR write 1 0x41  pc=0x80200000" for number in range(30)]
    suite.kernel("".join(f"trace {line}\n" for line in lines) + "shell\n")
    result = suite.run("def test_it(vm_booted, trace, console):\n console.expect('# ')\n assert False")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["the trace's last lines:", *(f"    [[]{line[1:]}" for line in lines[-20:])])
    assert lines[9] not in result.stdout.str()


def test_trace_with_gaps_is_no_base_for_a_verdict(suite):
    suite.kernel("warn 3 lines of the trace were dropped: its reader was too slow\nshell\n")
    result = suite.run("def test_it(trace): assert trace.count() == 0\ndef test_other(vm_booted): pass")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*GuestError: what the test counted is not all there was: 3 lines*"])


def test_gaps_in_the_trace_of_one_guest_of_several_count(suite):
    suite.kernel("warn 3 lines of the trace were dropped: its reader was too slow\nshell\n", "Slow")
    result = suite.run(
        """
        def test_it(vm_factory, trace):
            vm_factory(kernel="Slow").start()
            vm_factory().start()
        """
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*GuestError: what the test counted is not all there was: 3 lines*"])


def test_panic_ends_a_command_at_once(suite):
    result = suite.run(
        """
        def test_it(vm_booted, console, guest):
            guest.check("true")
            console.sendline("panic")
            guest.run("tail --pid=$PPID -f /dev/null", timeout=600)
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*GuestPanic: the guest panicked*"])


@pytest.mark.parametrize(
    ("script", "call", "exception"),
    [
        (PANIC, "check('true', timeout=600)", "GuestPanic"),
        ("stay\n", "check('tail --pid=$PPID -f /dev/null', timeout=0.1)", "GuestTimeout"),
        ("stay\n", "get('/stuck', timeout=0.1)", "GuestTimeout"),
        ("stay\n", "wait_for('false', timeout=0.1)", "GuestTimeout"),
    ],
)
def test_report_shows_the_line_of_the_test_and_the_error_alone(suite, script, call, exception):
    suite.kernel(script)
    result = suite.run(
        f"""
        def test_it(vm):
            vm.start()
            if {exception == "GuestPanic"}:
                vm.log.wait_end(60, lambda: True)
            vm.guest.{call}
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f">*vm.guest.{call[:5]}*", f"E*{exception}: *", f"*.py:5: {exception}"])
    result.stdout.no_re_match_line(r".*\.py:\d+: *$")


@pytest.mark.parametrize(
    ("end", "exception"),
    [
        ("off", "GuestExited: the guest ended: the guest powered off"),
        ("end 254 no memory there", "GuestHang: the guest ended: no memory there"),
        ("die 11", "GuestExited: the guest ended: its pyvmm was killed by SIGSEGV"),
    ],
)
def test_end_of_the_guest_ends_a_command_at_once(suite, end, exception):
    result = suite.run(
        f"""
        def test_it(vm_booted, console, guest):
            guest.check("true")
            console.sendline({end!r})
            guest.run("tail --pid=$PPID -f /dev/null", timeout=600)
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*{exception}", "*awaited: the end of 'tail *"])


def test_port_that_the_guest_closes_ends_the_command_and_the_next_one_has_a_new_way(suite):
    result = suite.run(
        """
        import pytest
        from pyvmm.testing.errors import GuestExited

        def test_it(vm_booted, guest):
            with pytest.raises(GuestExited, match="closed the connection"):
                guest.run(["hangup"])
            assert guest.check("echo again").stdout == "again\\n"
            assert vm_booted.state == "running"
        """,
        "-Werror",
    )
    result.assert_outcomes(passed=1)


def test_junit_file_names_the_artifacts_of_a_failure(suite):
    suite.run(
        "def test_it(vm_booted): assert False", "--junitxml=junit.xml", "-o", "junit_logging=system-out"
    )
    assert "[[ATTACHMENT|.pyvmm/" in (suite.path / "junit.xml").read_text()


def test_junit_file_tells_of_a_guest_that_did_not_boot_or_panicked_late(suite):
    junit = ("--junitxml=junit.xml", "-o", "junit_logging=system-out")
    suite.kernel(PANIC)
    suite.run("def test_it(vm_module): pass", *junit)
    text = (suite.path / "junit.xml").read_text()
    assert '"guest host" value="local"' in text
    assert "[[ATTACHMENT|.pyvmm/" in text
    suite.kernel("shell\n")
    test = """
    import pytest

    @pytest.fixture
    def vm_then_panic(vm):
        yield vm
        vm.console.sendline("panic")
        vm.log.wait_end(60, lambda: True)

    def test_it(vm_then_panic, console):
        vm_then_panic.start()
        console.expect("# ")
    """
    suite.run(test, *junit)
    assert "[[ATTACHMENT|.pyvmm/" in (suite.path / "junit.xml").read_text()


def test_nothing_is_kept_when_nothing_is_to_be(suite):
    suite.run("def test_it(vm_booted): assert False", "--vmm-keep=none").assert_outcomes(failed=1)
    assert not (suite.path / ".pyvmm").exists()
