# SPDX-License-Identifier: Apache-2.0
"""Builds ``pyvmm/_native.abi3.so``: the ordered operations of ``pyvmm.ring``, the run loop of
``pyvmm.nativerun`` and the virtqueues of ``pyvmm.devices.virtio.nativequeue``, in C.

setuptools runs it through cffi, at installation. Both load the result as a plain library, through ctypes:
nothing here is imported at run time, nor is cffi.
"""

from __future__ import annotations

import os

import cffi

# Arguments are of register size, which is what ctypes passes quickest; the compiler narrows them.
DECLARATIONS = """
uint16_t pyvmm_load_acquire16(uintptr_t address);
uint32_t pyvmm_load_acquire32(uintptr_t address);
void pyvmm_store_release16(uintptr_t address, uintptr_t value);
void pyvmm_store_release32(uintptr_t address, uintptr_t value);
uint16_t pyvmm_peer16(uintptr_t address);
uint32_t pyvmm_peer32(uintptr_t address);
uint16_t pyvmm_rearm16(uintptr_t address, uintptr_t value, uintptr_t peer);
uint16_t pyvmm_rearm32(uintptr_t address, uintptr_t value, uintptr_t peer);
"""

_FILES = [
    os.path.join(os.path.dirname(__file__), name)
    for name in ("_native_ring.c", "_native_run.c", "_native_queue.c")
]


def _source() -> str:
    parts = []
    for path in _FILES:
        with open(path) as file:
            parts.append(file.read())
    return "\n".join(parts)


ffi = cffi.FFI()
ffi.cdef(DECLARATIONS)
# Optional: where it cannot be compiled, pyvmm.ring uses libatomic, and vCPUs run in plain Python.
ffi.set_source(
    "pyvmm._native",
    _source(),
    optional=True,
    py_limited_api=True,
    define_macros=[("Py_LIMITED_API", "0x030A0000")],  # 3.10; later ones lack headers that cffi relies on
    depends=_FILES,
)
