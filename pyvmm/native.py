# SPDX-License-Identifier: Apache-2.0
"""The native module, ``_native.abi3.so``: some C, built at installation where there is a compiler.

All of it has a twin in Python, which is used where there is no module. It is loaded as a plain library.
"""

from __future__ import annotations

import ctypes
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

FILE = os.path.join(os.path.dirname(__file__), "_native.abi3.so")

_loaded: dict[str, ctypes.PyDLL] = {}


def library() -> ctypes.PyDLL:
    """The module. Raises OSError where it is not, or is another machine's.

    Its functions are called with the GIL (PyDLL): giving it up for a nanosecond's work costs a thread switch
    whenever another thread wants it (docs/adr/0009).
    """
    found = _loaded.get(FILE)
    if found is None:
        found = _loaded[FILE] = ctypes.PyDLL(FILE)
    return found


def address(name: str) -> int:
    """Of a function that other C calls; 0 where it cannot be had."""
    try:
        return ctypes.cast(library()[name], ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


def maker(name: str) -> Callable[[tuple[object, ...]], Any] | None:
    """The function of that name, which binds a tuple to C functions; None where it cannot be had.

    Without a GIL the module's C that works with objects is not safe.
    """
    if "t" in sys.abiflags:
        return None
    try:
        make = library()[name]
    except (OSError, AttributeError):
        return None
    make.argtypes, make.restype = (ctypes.py_object,), ctypes.py_object
    return make
