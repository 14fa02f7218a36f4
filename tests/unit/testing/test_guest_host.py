# SPDX-License-Identifier: Apache-2.0
"""What a test is told of the host of the guests, from what ``pyvmm doctor`` says there."""

import json

from pyvmm.testing.host import Host


class FakePlace:
    """A host whose doctor finds ``checks``."""

    name = "local"
    emulated = False

    def __init__(self, *checks):
        self._checks = [dict(zip(("name", "state", "found", "advice"), one, strict=True)) for one in checks]

    def start(self):
        pass

    def run(self, argv):
        return 0, json.dumps(self._checks) if argv[0] == "pyvmm" else "MemAvailable: 1024 kB\n"


def test_host_with_kvm_has_no_reason_against_guests():
    host = Host(FakePlace(("kvm", "ok", "/dev/kvm", ""), ("cpus", "ok", "up to 8 a guest", "")))
    assert (host.kvm, host.reason, host.memory) == (True, "", 1 << 20)
    assert host.lacks({"cpus": 9}) == "this host's KVM (local) takes 8 CPUs a guest"


def test_host_of_another_machine_says_where_guests_can_run():
    # The doctor only warns: ``pyvmm run`` has the lab there. ``--vmm-host=local`` asked for this very host.
    host = Host(FakePlace(("host", "warn", "x86_64 has no RISC-V KVM", "guests run in the lab")))
    assert not host.kvm
    assert host.reason == "x86_64 has no RISC-V KVM: guests run in the lab"
