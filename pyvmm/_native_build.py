# SPDX-License-Identifier: Apache-2.0
"""Builds ``pyvmm/_native.abi3.so``: the ordered operations of ``pyvmm.ring``, the run loop of
``pyvmm.nativerun``, the virtqueues of ``pyvmm.devices.virtio.nativequeue`` and the core of the PLIC of
``pyvmm.devices.nativeplic``, in C.

setuptools runs it through cffi, at installation. ``pyvmm.native`` loads the result as a plain library,
through ctypes: nothing here is imported at run time, nor is cffi, to which no function is declared.
"""

from __future__ import annotations

import os

import cffi

_FILES = [
    os.path.join(os.path.dirname(__file__), name)
    for name in ("_native_ring.c", "_native_run.c", "_native_queue.c", "_native_plic.c")
]


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
    depends=_FILES,
)
