# SPDX-License-Identifier: Apache-2.0
"""The real pyvmm on a fake KVM, for tests of the pytest plugin: PYVMM_TEST_CLI=fakes.commandcli.

FAKE_GUEST names one of the guests of ``fakes.command``.
"""

from __future__ import annotations

import os
import sys

from fakes import vmm


def main(argv: list[str]) -> int:
    """As pyvmm.cli.main."""
    if argv[0] == "doctor":
        return vmm.doctor()
    from fakes.command import FakedMachine

    from pyvmm import cli, machine

    sys.argv = [sys.argv[0], os.environ["FAKE_GUEST"]]
    machine.Machine = FakedMachine  # type: ignore[misc]
    return cli.main(argv)
