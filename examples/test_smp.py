# SPDX-License-Identifier: Apache-2.0
"""The ten lines of docs/howto/pytest.md."""

import pytest


@pytest.mark.vmm(mem="256M", cpus=2)
def test_second_hart_comes_up(console, guest):
    console.expect(r"smp: Brought up 1 node, 2 CPUs", timeout=20)
    assert guest.check("nproc").stdout.strip() == "2"
    guest.put(b"#!/bin/sh\nuname -m\n", "/tmp/tool", mode=0o755)
    assert guest.run("/tmp/tool").stdout == "riscv64\n"
