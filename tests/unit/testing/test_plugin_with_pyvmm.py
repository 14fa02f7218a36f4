# SPDX-License-Identifier: Apache-2.0
"""The plugin with the real pyvmm, whose guests run on a fake KVM: control, events, trace, ends."""

import json

import pytest


@pytest.fixture
def run(suite, image, monkeypatch):
    """Runs tests whose guest is one of ``fakes.command``."""

    def go(guest, test, *options):
        monkeypatch.setenv("PYVMM_TEST_CLI", "fakes.commandcli")
        monkeypatch.setenv("FAKE_GUEST", guest)
        nouns = 'pytestmark = pytest.mark.vmm(console="serial", mem="16M", agent=False)'
        test = "import pytest\n" + nouns + "\n" + test
        return suite.run(test, f"--vmm-kernel={image}", "--vmm-keep=all", *options, kernel=False)

    return go


def test_guest_is_seen_and_controlled_through_its_pyvmm(suite, run):
    result = run(
        "echo",
        """
def test_it(vm, console, trace):
    vm.start()
    console.expect("ready")
    console.send("hello")
    console.expect("hello")
    vm.pause()
    assert vm.request("status")["state"] == "paused"
    vm.resume()
    assert "pc" in vm.registers(0)
    assert vm.inspect()
    assert trace.count("mmio", device="uart") > 5
    console.send("q")
    assert vm.wait().reason == "poweroff"
    assert vm.end.message == "the guest powered off"
""",
    )
    result.assert_outcomes(passed=1)
    (events,) = suite.artifacts("events.jsonl")
    kinds = [json.loads(line)["event"] for line in events.read_text().splitlines()]
    assert kinds[-3:] == ["paused", "resumed", "ended"]
    assert (suite.artifacts("machine.dtb")[0].read_bytes())[:4] == b"\xd0\x0d\xfe\xed"


def test_panicked_guest_is_kept_for_its_registers(run):
    result = run("panic", "def test_it(vm, console):\n    vm.start()\n    console.expect('login:')")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*GuestPanic: the guest panicked: Kernel panic - not syncing: x"])
    result.stdout.fnmatch_lines(["state: panicked", "cpu0: pc=0x*"])


def test_allowed_panic_ends_with_its_exit_code(run):
    result = run(
        "panic",
        """
@pytest.mark.vmm_allow_panic
def test_it(vm):
    vm.start()
    end = vm.wait()
    assert (end.reason, end.exit_code) == ("panic", 255)
""",
    )
    result.assert_outcomes(passed=1)


def test_guest_that_kvm_gives_up_on_hangs(run):
    result = run("misaligned", "def test_it(vm, console):\n    vm.start()\n    console.expect('login:')")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*GuestHang: the guest ended: the guest cannot go on*"])


def test_reboot_is_an_end(run):
    result = run("reboot", "def test_it(vm):\n    vm.start()\n    assert vm.wait().reason == 'reboot'")
    result.assert_outcomes(passed=1)


def test_mistake_is_pyvmms_own_sentence(run):
    result = run("idle", "def test_it(vm_factory):\n    vm_factory(irqchip='apic').start()")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ConfigError: --irqchip takes one of *"])


def test_flood_ends_with_the_test(run):
    run("flood", "def test_it(vm, console):\n    vm.start()\n    console.expect('.{100}')").assert_outcomes(
        passed=1
    )
