# SPDX-License-Identifier: Apache-2.0
"""The agent that is committed is what its sources give."""

from pathlib import Path

import pyvmm
from pyvmm.lab.programs import freestanding


def test_sources_give_the_committed_agent_byte_for_byte(tmp_path):
    folder = Path(pyvmm.__file__).parent / "guest"
    freestanding(sorted((folder / "agent").glob("*.c")), tmp_path / "agent")
    assert (tmp_path / "agent").read_bytes() == (folder / "agent.riscv64").read_bytes()
