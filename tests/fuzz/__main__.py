# SPDX-License-Identifier: Apache-2.0
"""Runs one target under atheris: ``python -m fuzz TARGET MODULE [option of libFuzzer, folder]...``

``MODULE`` is the native module, compiled for the fuzzer. ``scripts/fuzz-native`` prepares all that.
"""

from __future__ import annotations

import ctypes
import importlib
import sys

import atheris


def main() -> None:
    name, module, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["pyvmm"]):
        target = importlib.import_module(f"fuzz.{name}")
    from pyvmm import native

    ctypes.PyDLL(module)  # or it says why not; pyvmm would do without it
    native.FILE = module
    atheris.Setup([sys.argv[0], *options], target.check)
    atheris.Fuzz()


main()
