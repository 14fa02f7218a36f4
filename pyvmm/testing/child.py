# SPDX-License-Identifier: Apache-2.0
"""The program a guest of a test runs in: ``pyvmm``, killed by the kernel as soon as its parent is gone.

``python -m pyvmm.testing.child PARENT WORDS...`` does what ``pyvmm WORDS...`` does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from importlib import import_module

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> int:
    """Bind this process to its parent and be pyvmm; returns the exit code."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(argv[0]):
        return 128 + signal.SIGKILL  # it was gone before the kernel knew
    # Tests of the plugin itself have a program of their own here.
    module = import_module(os.environ.get("PYVMM_TEST_CLI", "pyvmm.cli"))
    code: int = module.main(argv[1:])
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
