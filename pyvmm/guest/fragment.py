# SPDX-License-Identifier: Apache-2.0
"""The agent as a piece of initramfs."""

from __future__ import annotations

import os

from pyvmm.cpio import Initramfs
from pyvmm.guest import PROGRAM

_ALIGNMENT = 512


def fragment() -> bytes:
    """An uncompressed archive that holds the agent. The guest's own initramfs follows, however compressed.

    In that order, which Linux knows from early microcode: not every decompressor knows the end of its stream.
    """
    with open(os.path.join(os.path.dirname(__file__), "agent.riscv64"), "rb") as file:
        program = file.read()
    fs = Initramfs()
    fs.file(PROGRAM, program, 0o755)
    packed = fs.pack()
    return packed + bytes(-len(packed) % _ALIGNMENT)
