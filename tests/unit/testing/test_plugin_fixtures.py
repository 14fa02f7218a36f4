# SPDX-License-Identifier: Apache-2.0
"""Every fixture of the plugin in a test that passes, and what it leaves."""

import json


def test_guest_is_made_and_started_by_the_test(suite):
    result = suite.run(
        """
        def test_it(vm, console):
            assert vm.state == "made"
            vm.start()
            console.expect("Linux version ([0-9.]+)")
            assert console.match[1] == "6.99"
            assert vm.state == "running"
        """
    )
    result.assert_outcomes(passed=1)
    assert len(suite.lives("begin")) == len(suite.lives("end")) == 1


def test_console_alone_is_that_of_a_booted_guest(suite):
    result = suite.run(
        """
        def test_it(console):
            console.expect_exact("# ")
            console.sendline("echo hello")
            console.expect("hel+o")
            assert any("Linux version" in line for line in console.lines())
            assert b"Linux version" in console.log
            console.sendbreak("t")
            console.expect("sysrq: t")
        """
    )
    result.assert_outcomes(passed=1)


def test_commands_and_files_go_through_the_agent(suite):
    result = suite.run(
        """
        import pytest
        from pyvmm.testing.errors import GuestCommandError

        def test_it(guest):
            done = guest.run("echo out; echo err >&2; exit 3")
            assert (done.status, done.stdout, done.stderr) == (3, "out\\n", "err\\n")
            assert guest.check(["cat"], input="typed").stdout == "typed"
            guest.put(b"content", "/file")
            assert guest.get("/file") == b"content"
            with pytest.raises(GuestCommandError) as caught:
                guest.check("echo why >&2; false")
            assert (caught.value.status, caught.value.stderr) == (1, "why\\n")

        def test_waiting(guest):
            guest.wait_for("echo >>tries; [ $(wc -l <tries) = 3 ]")
        """
    )
    result.assert_outcomes(passed=2)


def test_agent_powers_the_guest_off(suite):
    result = suite.run(
        """
        def test_it(vm_booted, guest):
            guest.power_off()
            assert vm_booted.wait().reason == "poweroff"
        """
    )
    result.assert_outcomes(passed=1)


def test_keys_are_typed_as_pexpect_types_them(suite):
    result = suite.run(
        """
        def test_it(vm_booted, console):
            assert console.send("echo ") == 5
            console.sendcontrol("c")
            console.sendline()
            console.expect_exact("\\x03")
        """
    )
    result.assert_outcomes(passed=1)


def test_context_ids_and_taps_are_each_guests_own(suite):
    result = suite.run(
        """
        def test_it(vm_factory):
            for _ in range(2):
                vm_factory(vsock="auto", nets=["user", "tap,tap=auto,vhost=off"]).start()
        """
    )
    result.assert_outcomes(passed=1)
    one, two = suite.lives("begin")
    assert int(one["vsock"]) != int(two["vsock"])
    assert one["network"].startswith("tap,tap=pyvmm")
    assert one["network"] != two["network"]


def test_nouns_come_from_options_then_fixtures_then_markers(suite):
    suite.run(
        """
        import pytest

        @pytest.fixture
        def vmm_config(vmm_config):
            return vmm_config.replace(params="quiet", cpus=2)

        @pytest.mark.vmm(cpus=4, disks=["a.img", "b.img,ro"])
        class TestClass:
            @pytest.mark.vmm(append="debug")
            def test_it(self, vm_booted):
                assert vm_booted.config.mem == "64M"
        """,
        "--vmm-mem=64M",
    ).assert_outcomes(passed=1)
    (options,) = suite.lives("begin")
    assert (options["mem"], options["cpus"], options["params"]) == ("64M", "4", "debug")
    assert options["disk"] == "b.img,ro"
    assert "agent" in options
    assert options["on-reboot"] == "exit"


def test_file_and_profile_come_before_options(suite):
    (suite.path / "pyvmm.toml").write_text(
        '[defaults]\nmem = "16M"\nlog = "console.log"\ntrace = "mmio"\n[profile.two]\ncpus = 2\nmem = "32M"\n'
    )
    suite.run(
        "def test_it(vm_booted): pass", "--vmm-config=pyvmm.toml", "--vmm-profile=two", "--vmm-mem=64M"
    ).assert_outcomes(passed=1)
    (options,) = suite.lives("begin")
    assert (options["mem"], options["cpus"]) == ("64M", "2")
    assert "log" not in options  # the plugin has its own, and a folder for it


def test_factory_makes_several_guests_with_their_own_nouns(suite):
    result = suite.run(
        """
        def test_it(vm_factory):
            with vm_factory(mem="32M") as one, vm_factory(cpus=2) as two:
                one.start(), two.start()
                two.console.expect("# ")
                one.console.expect("# ")
            assert one.end is not None
        """
    )
    result.assert_outcomes(passed=1)
    names = {options["name"] for options in suite.lives("begin")}
    assert len(names) == 2


def test_module_shares_one_boot(suite):
    result = suite.run(
        """
        def test_one(vm_module, console):
            console.sendline("echo one")
            console.expect("one")
            console.sendline("echo mine")
            while b"mine" not in console.log:
                pass

        def test_two(vm_module, guest, console):
            assert guest.check("echo two").stdout == "two\\n"
            console.sendline("echo yours")
            console.expect("yours")
            assert "mine" not in console.before
        """
    )
    result.assert_outcomes(passed=2)
    assert len(suite.lives("begin")) == 1


def test_module_boots_once_for_each_kernel(suite):
    suite.kernel("say one\nshell\n", "Image-6.12")
    suite.kernel("say two\nshell\n", "Image-7.0")
    result = suite.run(
        """
        def test_one(vm_module): assert vm_module.state == "running"
        def test_two(vm_module): assert vm_module.state == "running"
        """,
        "--vmm-kernel=Image-*",
        kernel=False,
    )
    result.assert_outcomes(passed=4)
    assert len(suite.lives("begin")) == 2


def test_nouns_come_from_indirect_parameters_too(suite):
    suite.run(
        """
        import pytest

        @pytest.mark.vmm(mem="32M", cpus=2)
        @pytest.mark.parametrize("vm", [{"cpus": 4}], indirect=True)
        def test_it(vm_booted): pass

        @pytest.mark.parametrize("vm_module", [{"cpus": 3}], indirect=True)
        def test_module(vm_module): pass
        """
    ).assert_outcomes(passed=2)
    assert [(one.get("mem"), one.get("cpus")) for one in suite.lives("begin")] == [("32M", "4"), (None, "3")]


def test_trace_counts_events_by_kind_device_and_section(suite):
    suite.kernel(
        "trace [    0.100000] cpu0   sbi.hsm_hart_start call 0x1 0x2 0x0 -> 0 0x0 pc=0x8\n"
        "trace [    0.200000] cpu0   virtio-blk.QUEUE_NOTIFY write 4 0x0  pc=0x80200000\n"
        "trace [    0.300000] irq    uart.irq10 raise\nshell\n"
    )
    result = suite.run(
        """
        def test_it(vm_booted, console, trace):
            console.expect("# ")
            assert trace.count() == 3
            assert trace.count("sbi", name="hsm_hart_start") == 1
            assert trace.count("mmio", device="virtio-blk", action="write") == 1
            assert trace.events("irq")[0].time == 0.3
            with trace.section("nothing"):
                pass
            assert trace["nothing"].count() == 0
        """
    )
    result.assert_outcomes(passed=1)
    assert suite.lives("begin")[0]["trace"] == "mmio,sbi,irq"


def test_trace_is_counted_once_all_that_happened_was_written(suite):
    suite.kernel("".join(f"late [    0.{at}00000] irq    uart.irq10 raise\n" for at in range(3)) + "shell\n")
    result = suite.run(
        """
        def test_it(vm_booted, console, trace):
            console.expect("# ")
            assert trace.count("irq") == 3
            assert trace.count() == 3
        """
    )
    result.assert_outcomes(passed=1)


def test_trace_of_a_guest_that_has_ended_or_not_begun_can_be_counted(suite):
    suite.kernel("trace [    0.300000] irq    uart.irq10 raise\nshell\n")
    result = suite.run(
        """
        def test_it(vm, console, trace):
            with trace.section("whole"):
                assert trace.count() == 0
                vm.start()
                console.expect("# ")
                console.sendline("off")
                vm.wait()
            assert trace["whole"].count() == trace.count("irq") == 1
        """
    )
    result.assert_outcomes(passed=1)


def test_guest_without_a_trace_says_so(suite):
    suite.kernel("shell\n")
    result = suite.run("def test_it(vm_booted): vm_booted.trace")
    result.stdout.fnmatch_lines(["*ConfigError: this guest is not traced: *"])


def test_host_is_described(suite):
    result = suite.run(
        """
        def test_it(vmm_host):
            assert vmm_host.kvm and not vmm_host.aia
            assert vmm_host.isa == {"sstc", "zbb"}
            assert (vmm_host.where, vmm_host.speed) == ("local", "hardware")
            assert vmm_host.memory > 0
            assert vmm_host.has_tool("sh") and not vmm_host.has_tool("no-such-tool")
        """
    )
    result.assert_outcomes(passed=1)


def test_kernels_of_a_glob_multiply_the_tests(suite):
    suite.kernel("say one\nshell\n", "Image-6.12")
    suite.kernel("say two\nshell\n", "Image-7.0")
    result = suite.run(
        """
        def test_it(console): console.expect("one|two")
        def test_without(): pass
        """,
        "--vmm-kernel=Image-*",
        "-v",
        kernel=False,
    )
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines_random(["*test_it?Image-6.12?*", "*test_it?Image-7.0?*"])


def test_kernel_of_a_test_is_known_and_none_when_none_was_named(suite):
    suite.run(
        "def test_it(vmm_kernel, vmm_config): assert vmm_config.kernel == vmm_kernel and vmm_kernel[0] == '/'"
    ).assert_outcomes(passed=1)
    suite.run("def test_it(vmm_kernel): assert vmm_kernel is None", kernel=False).assert_outcomes(passed=1)


def test_guest_that_powers_off_ends_with_its_reason(suite):
    result = suite.run(
        """
        def test_it(vm_booted, console):
            console.sendline("off")
            end = vm_booted.wait()
            assert (end.reason, end.exit_code) == ("poweroff", 0)
        """
    )
    result.assert_outcomes(passed=1)


def test_artifacts_of_passing_tests_go_unless_they_are_asked_for(suite):
    test = "def test_it(vm_booted, console): console.expect('# ')"
    suite.run(test).assert_outcomes(passed=1)
    assert not (suite.path / ".pyvmm").exists()
    suite.run(test, "--vmm-keep=all").assert_outcomes(passed=1)
    (log,) = suite.artifacts("console.log")
    assert log.read_bytes().startswith(b"[    ")
    assert b"] Linux version 6.99 (fake)\r\n[" in log.read_bytes()
    config = json.loads(log.with_name("config.json").read_text())
    assert config["config"]["kernel"].endswith("Image")
    assert config["command"][:2] == ["pyvmm", "run"]
    assert log.with_name("machine.dtb").read_bytes() == b"\xd0\x0d\xfe\xed"
    events = [json.loads(line) for line in log.with_name("events.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "ended"


def test_junit_file_names_kernel_host_and_boot_time(suite):
    suite.run("def test_it(vm_booted, console): console.expect('# ')", "--junitxml=junit.xml")
    text = (suite.path / "junit.xml").read_text()
    for words in ('"guest kernel" value="6.99 (fake)"', '"guest host" value="local"', '"guest boot seconds"'):
        assert words in text


def test_requirements_decide_whether_a_test_runs(suite):
    result = suite.run(
        """
        import pytest

        @pytest.mark.vmm_requires(isa=["sstc"], sbi="hsm", tool="sh", cpus=8)
        def test_has_all(): pass

        @pytest.mark.vmm_requires(isa=["zicond"])
        def test_isa(): pass

        @pytest.mark.vmm_requires(sbi=["hsm", "pmu"])
        def test_sbi(): pass

        @pytest.mark.vmm_requires(irqchip="plic")
        def test_plic(): pass

        @pytest.mark.vmm_requires(irqchip="aia")
        def test_aia(): pass

        @pytest.mark.vmm_requires(tool="no-such-tool")
        def test_tool(): pass

        @pytest.mark.vmm_requires(cpus=9)
        def test_cpus(): pass
        """,
        "-rs",
    )
    result.assert_outcomes(passed=2, skipped=5)
    result.stdout.fnmatch_lines_random(
        [
            "*has no zicond",
            "*has no SBI pmu",
            "*no in-kernel AIA",
            "*no-such-tool is not installed*",
            "*takes 8 CPUs a guest",
        ]
    )
