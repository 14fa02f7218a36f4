# SPDX-License-Identifier: Apache-2.0
"""Ordered, untorn access to integers that somebody else reads or writes at the same time.

Why not struct, memoryview or ctypes fields: CPython copies multi-byte integers with memcpy from a pointer it
takes to be unaligned. Compiled for riscv64, whose compilers avoid unaligned accesses, that becomes one load
or store a *byte*, and the other side sees half of an index going from 0x00FF to 0x0100. x86 never shows it.
Nor has Python a fence, and RISC-V's memory model lets loads and stores pass each other.

So this module is the only one that touches such words. It offers whole operations, each with the fence it
needs inside: no device ever has to think of one. They are carried out, in this order of preference, by

- the native module (``pyvmm.native``), a few lines of C;
- libatomic, whose ``__atomic_load_2`` is one load with the fences that its order asks for;
- plain Python, only when asked for by name: for tests, where both sides are one thread.

The libraries are called through ``PyDLL``, which keeps the GIL: see ``native.library``.
"""

from __future__ import annotations

import ctypes

from pyvmm import native
from pyvmm.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Operations = dict[str, Callable[..., int]]

NATIVE, LIBATOMIC, PLAIN = "native module", "libatomic", "plain Python"

_LIBATOMIC_FILE = "libatomic.so.1"

# The memory orders of <stdatomic.h>, which are part of libatomic's ABI.
_RELAXED, _ACQUIRE, _RELEASE, _ACQ_REL, _SEQ_CST = 0, 2, 3, 4, 5


class Ring:
    """The ordered operations, as attributes: calling them costs nothing on top of the backend.

    ``address`` and ``peer`` are host addresses, aligned to the width of the word; nothing checks them here.
    ``backend`` names what carries the operations out; ``safe`` says whether a real guest may be on the other
    side. Raises HostError when no safe backend is there: there is no slower way that would still be right.
    """

    __slots__ = (
        "backend", "clear_bits32", "load_acquire16", "load_acquire32", "peer16", "peer32", "rearm16",
        "rearm32", "safe", "set_bits32", "store_release16", "store_release32",
    )  # fmt: skip

    #: (address) -> value. Later accesses are not done before it: for the index or flags that announce
    #: something. Pairs with the release store of whoever publishes it.
    load_acquire16: Callable[[int], int]
    load_acquire32: Callable[[int], int]

    #: (address, value). Earlier accesses are done before it: for the index or flags that announce something.
    store_release16: Callable[[int, int], object]
    store_release32: Callable[[int, int], object]

    #: (address, value, peer) -> the 16-bit word at ``peer``, read after everybody sees ``value``: for asking
    #: to be notified, and then looking whether there was something already. The number is ``value``'s width.
    rearm16: Callable[[int, int, int], int]
    rearm32: Callable[[int, int, int], int]

    #: (address) -> value, read after everybody sees all earlier stores: for looking whether the other side
    #: wants to be notified of what was just published.
    peer16: Callable[[int], int]
    peer32: Callable[[int], int]

    #: (address, bits) -> the word before, of which these bits are now set, or cleared, as one step that no
    #: other access passes: for words that several write, each its own bits.
    set_bits32: Callable[[int, int], int]
    clear_bits32: Callable[[int, int], int]

    def __init__(self, backend: str | None = None) -> None:
        """``backend``: NATIVE, LIBATOMIC or PLAIN, and no other; None for the best safe one."""
        wanted = (NATIVE, LIBATOMIC) if backend is None else (backend,)
        for name in wanted:
            try:
                operations = _BACKENDS[name]()
            except OSError as error:
                refusal = error
                continue
            for operation, function in operations.items():
                setattr(self, operation, function)
            self.backend, self.safe = name, name != PLAIN
            return
        if backend is not None:
            raise HostError(f"ring operations by {backend} are not to be had here: {refusal}") from refusal
        raise HostError(
            f"{_LIBATOMIC_FILE} is not installed (Debian: the package libatomic1); pyvmm shares memory with "
            "the guest and needs its atomic operations",
            refusal.errno or 0,
        ) from refusal


# ctypes hands an integer over quickest as c_void_p, which makes one register of it. That is right for any
# argument of at most 16 bits too: both ABIs widen those with zeros, and small positive ints likewise.
_REGISTER = ctypes.c_void_p
_RESULT = {16: ctypes.c_uint16, 32: ctypes.c_uint32}


def _bind(library: ctypes.CDLL, name: str, result: type | None, *arguments: type) -> Callable[..., int]:
    function = library[name]
    function.restype, function.argtypes = result, arguments
    return function


def _native() -> Operations:
    library = native.library()
    operations = {}
    for bits, result in _RESULT.items():
        for name, returns, count in (
            (f"load_acquire{bits}", result, 1),
            (f"store_release{bits}", None, 2),
            (f"rearm{bits}", ctypes.c_uint16, 3),
            (f"peer{bits}", result, 1),
        ):
            operations[name] = _bind(library, f"pyvmm_{name}", returns, *[_REGISTER] * count)
    for name in ("set_bits32", "clear_bits32"):
        operations[name] = _bind(library, f"pyvmm_{name}", ctypes.c_uint32, _REGISTER, _REGISTER)
    return operations


def _libatomic() -> Operations:
    library = ctypes.PyDLL(_LIBATOMIC_FILE)
    fence = library["atomic_thread_fence"]  # its argument is an int, which is what ctypes passes unasked
    fence.restype = None
    load2 = _bind(library, "__atomic_load_2", ctypes.c_uint16, _REGISTER, _REGISTER)
    load4 = _bind(library, "__atomic_load_4", ctypes.c_uint32, _REGISTER, _REGISTER)
    store2 = _bind(library, "__atomic_store_2", None, _REGISTER, _REGISTER, _REGISTER)
    store4 = _bind(library, "__atomic_store_4", None, _REGISTER, ctypes.c_uint32, _REGISTER)

    def operations(bits: int, load: Callable[..., int], store: Callable[..., int]) -> Operations:
        def load_acquire(address: int) -> int:
            return load(address, _ACQUIRE)

        def store_release(address: int, value: int) -> int:
            return store(address, value, _RELEASE)

        def rearm(address: int, value: int, peer: int) -> int:
            store(address, value, _RELAXED)
            fence(_SEQ_CST)
            return load2(peer, _ACQUIRE)

        def peer(address: int) -> int:
            fence(_SEQ_CST)
            return load(address, _ACQUIRE)

        return _named(bits, load_acquire, store_release, rearm, peer)

    word = ctypes.c_uint32
    fetch_or = _bind(library, "__atomic_fetch_or_4", word, _REGISTER, word, _REGISTER)
    fetch_and = _bind(library, "__atomic_fetch_and_4", word, _REGISTER, word, _REGISTER)
    bits: Operations = {
        "set_bits32": lambda address, bits: fetch_or(address, bits, _ACQ_REL),
        "clear_bits32": lambda address, bits: fetch_and(address, ~bits, _ACQ_REL),
    }
    return operations(16, load2, store2) | operations(32, load4, store4) | bits


def _plain() -> Operations:
    def operations(bits: int) -> Operations:
        word = _RESULT[bits].from_address

        def load(address: int) -> int:
            return word(address).value

        def store(address: int, value: int) -> int:
            word(address).value = value
            return 0

        def rearm(address: int, value: int, peer: int) -> int:
            word(address).value = value
            return ctypes.c_uint16.from_address(peer).value

        return _named(bits, load, store, rearm, load)

    def set_bits(address: int, bits: int) -> int:
        before = ctypes.c_uint32.from_address(address).value
        ctypes.c_uint32.from_address(address).value = before | bits
        return before

    def clear_bits(address: int, bits: int) -> int:
        before = ctypes.c_uint32.from_address(address).value
        ctypes.c_uint32.from_address(address).value = before & ~bits
        return before

    return operations(16) | operations(32) | {"set_bits32": set_bits, "clear_bits32": clear_bits}


def _named(
    bits: int,
    load: Callable[..., int],
    store: Callable[..., int],
    rearm: Callable[..., int],
    peer: Callable[..., int],
) -> Operations:
    return {
        f"load_acquire{bits}": load,
        f"store_release{bits}": store,
        f"rearm{bits}": rearm,
        f"peer{bits}": peer,
    }


_BACKENDS = {NATIVE: _native, LIBATOMIC: _libatomic, PLAIN: _plain}
