# SPDX-License-Identifier: Apache-2.0
"""Builds ``pyvmm/_native.abi3.so`` from all ``_native_*.c``. Each says whose it is.

setuptools runs it through cffi, at installation. ``pyvmm.native`` loads the result as a plain library,
through ctypes: nothing here is imported at run time, nor is cffi, to which no function is declared.
"""

from __future__ import annotations

import glob
import os

import cffi

_FOLDER = os.path.abspath(os.path.dirname(__file__))
_FILES = sorted(glob.glob(os.path.join(_FOLDER, "_native_*.c")))


def _source() -> str:
    parts = []
    for path in _FILES:
        with open(path) as file:
            parts.append(file.read())
    return "\n".join(parts)


ffi = cffi.FFI()
# Optional: where it cannot be compiled, pyvmm.ring uses libatomic, and vCPUs run in plain Python.
ffi.set_source(
    "pyvmm._native",
    _source(),
    optional=True,
    py_limited_api=True,
    define_macros=[("Py_LIMITED_API", "0x030A0000")],  # 3.10; later ones lack headers that cffi relies on
    include_dirs=[_FOLDER],
    depends=[*_FILES, *glob.glob(os.path.join(_FOLDER, "_native_*.h"))],
)
