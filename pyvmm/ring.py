# SPDX-License-Identifier: Apache-2.0
"""Ordered, untorn access to integers that somebody else reads or writes at the same time.

Why not struct, memoryview or ctypes fields: CPython copies multi-byte integers with memcpy from a pointer it
takes to be unaligned. Compiled for riscv64, whose compilers avoid unaligned accesses, that becomes one load
or store a *byte*, and the other side sees half of an index going from 0x00FF to 0x0100. x86 never shows it.
Nor has Python a fence, and RISC-V's memory model lets loads and stores pass each other.

So this module is the only one that touches such words, through libatomic's functions: ``__atomic_load_4``
there is one load with the fences that its order asks for. They are called through ``PyDLL``, which keeps the
GIL: giving it up for a nanosecond's work costs a thread switch whenever another thread wants it.
"""

from __future__ import annotations

import ctypes

from pyvmm.errors import HostError

LIBRARY = "libatomic.so.1"

# The memory orders of <stdatomic.h>, which are part of libatomic's ABI.
_RELAXED, _ACQUIRE, _RELEASE, _SEQ_CST = 0, 2, 3, 5


class Ring:
    """The ordered operations. ``backend`` names what carries them out.

    Raises HostError when the library is absent: there is no slower way that would still be right.
    """

    __slots__ = ("_fence", "_load2", "_load4", "_store2", "_store4", "backend")

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            atomic = ctypes.PyDLL(library)
        except OSError as error:
            raise HostError(
                f"{library} is not installed (Debian: the package libatomic1); pyvmm shares memory with the "
                "guest and needs its atomic operations",
                error.errno or 0,
            ) from error
        self.backend = f"{library} through ctypes"
        self._load2 = atomic["__atomic_load_2"]
        self._load2.argtypes, self._load2.restype = (ctypes.c_void_p, ctypes.c_int), ctypes.c_uint16
        self._load4 = atomic["__atomic_load_4"]
        self._load4.argtypes, self._load4.restype = (ctypes.c_void_p, ctypes.c_int), ctypes.c_uint32
        self._store2 = atomic["__atomic_store_2"]
        self._store2.argtypes = (ctypes.c_void_p, ctypes.c_uint16, ctypes.c_int)
        self._store2.restype = None
        self._store4 = atomic["__atomic_store_4"]
        self._store4.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int)
        self._store4.restype = None
        self._fence = atomic["atomic_thread_fence"]
        self._fence.argtypes, self._fence.restype = (ctypes.c_int,), None

    def load_acquire16(self, address: int) -> int:
        """Read the aligned 16-bit word at ``address``; later accesses are not done before it."""
        value: int = self._load2(address, _ACQUIRE)
        return value

    def store_release16(self, address: int, value: int) -> None:
        """Write the aligned 16-bit word at ``address``; earlier accesses are done before it."""
        self._store2(address, value, _RELEASE)

    def rearm16(self, address: int, value: int, peer: int) -> int:
        """Write the word at ``address``, and only when others can see it read the 16-bit one at ``peer``."""
        self._store2(address, value, _RELAXED)
        self._fence(_SEQ_CST)
        word: int = self._load2(peer, _ACQUIRE)
        return word

    def peer16(self, address: int) -> int:
        """Read the 16-bit word at ``address`` only when others can see every earlier store."""
        self._fence(_SEQ_CST)
        value: int = self._load2(address, _ACQUIRE)
        return value

    def load_acquire32(self, address: int) -> int:
        """Read the aligned 32-bit word at ``address``; later accesses are not done before it.

        Pairs with the release store of whoever publishes what the word announces.
        """
        value: int = self._load4(address, _ACQUIRE)
        return value

    def store_release32(self, address: int, value: int) -> None:
        """Write the aligned 32-bit word at ``address``; earlier accesses are done before it."""
        self._store4(address, value, _RELEASE)
