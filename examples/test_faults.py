# SPDX-License-Identifier: Apache-2.0
"""When kernels fail: panics are recognised, end what waits for the guest, and leave their last words."""

import pytest

from pyvmm.testing.errors import GuestPanic


@pytest.mark.vmm_allow_panic
def test_crash_is_recognised_with_its_reason(vm_booted, console):
    console.sendline("echo c >/proc/sysrq-trigger")
    console.expect(r"Kernel panic - not syncing: ([^\r]*)\r")
    assert console.match[1] == "sysrq triggered crash"
    end = vm_booted.wait()
    assert (end.reason, end.exit_code) == ("panic", 255)


@pytest.mark.vmm_allow_panic
def test_panic_ends_the_command_that_caused_it(guest):
    with pytest.raises(GuestPanic, match="sysrq triggered crash"):
        guest.check("echo c >/proc/sysrq-trigger; sleep 600")


@pytest.mark.vmm_allow_panic
@pytest.mark.vmm(append="init=/nowhere rdinit=/nowhere", agent=False)
def test_kernel_without_an_init_says_so(vm, console):
    vm.start()
    console.expect("Kernel panic - not syncing: (VFS|No working init)")
    assert vm.wait().reason == "panic"
