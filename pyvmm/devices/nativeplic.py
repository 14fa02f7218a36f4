# SPDX-License-Identifier: Apache-2.0
"""A PLIC's core in C, where the native module was built.

A claim and a completion an interrupt were most of what a wired interrupt cost, and the vCPU's thread had to
wait for the GIL just when the I/O thread, which had raised the wire, was busy. ``_native_plic.c`` does what
``PlicCore`` does, its twin, without the GIL: the run loop calls it directly. Guests see no difference
(docs/adr/0019).
"""

from __future__ import annotations

import ctypes
import threading

from pyvmm import native
from pyvmm.errors import KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ANSWER = "pyvmm_plic_answer_1"
_BITS = ctypes.c_uint64 * 16


class _Context(ctypes.Structure):
    """``struct plic_context`` of _native_plic.c."""

    enabled: ctypes.Array[ctypes.c_uint64]
    threshold: int

    _fields_ = (
        ("enabled", _BITS),
        ("threshold", ctypes.c_uint32),
        ("asserted", ctypes.c_uint32),
        ("fd", ctypes.c_int32),
    )


class _Shared(ctypes.Structure):
    """``struct plic`` of _native_plic.c."""

    level: ctypes.Array[ctypes.c_uint64]
    pending: ctypes.Array[ctypes.c_uint64]
    claimed: ctypes.Array[ctypes.c_uint64]
    latched: ctypes.Array[ctypes.c_uint64]

    _fields_ = (
        ("lock", ctypes.c_uint64 * 8),
        ("ioctl", ctypes.c_uint64),
        ("contexts", ctypes.c_uint64),
        ("nr_contexts", ctypes.c_uint32),
        ("sources", ctypes.c_uint32),
        ("words", ctypes.c_uint32),
        ("error", ctypes.c_int32),
        *((name, _BITS) for name in ("edge", "level", "pending", "claimed", "latched")),
        ("above", _BITS * 8),
    )


class NativePlicCore:
    """See ``pyvmm.devices.pliccore.Core``.

    ``lock`` orders what the registers keep in Python; the core has one in C, which comes after it. ``ioctl``
    is the address of the function that signals the vCPUs, whose descriptors are ``fds``: it must not need
    the GIL while another thread may call. Raises OSError or AttributeError where the module was not built.
    """

    def __init__(self, ioctl: int, fds: Sequence[int], *, sources: int) -> None:
        library = native.library()
        self.lock = threading.Lock()
        self.sources = sources
        self.contexts = len(fds)
        self._valid = (2 << sources) - 2
        self._shared, self._contexts = self._make(ioctl, fds)
        # Without argtypes a call is the cheapest: small integers go as C has them.
        self._plic = ctypes.byref(self._shared)
        #: Addresses of the C functions that answer accesses to claim registers, and loads of enable bits,
        #: each with that of what it wants.
        self.answer, self.answer_enable = (
            (ctypes.cast(library[name], ctypes.c_void_p).value or 0, ctypes.addressof(self._shared))
            for name in (ANSWER, "pyvmm_plic_answer_enable")
        )
        self._drive = library["pyvmm_plic_drive"]
        self._pulse = library["pyvmm_plic_pulse"]
        self._claim = library["pyvmm_plic_claim"]
        self._complete = library["pyvmm_plic_complete"]
        self._set_edge = library["pyvmm_plic_set_edge"]
        self._set_priority = library["pyvmm_plic_set_priority"]
        self._set_threshold = library["pyvmm_plic_set_threshold"]
        self._set_enabled = library["pyvmm_plic_set_enabled"]
        self._enabled = library["pyvmm_plic_enabled"]
        self._pending = library["pyvmm_plic_pending"]
        self._reset = library["pyvmm_plic_reset"]
        self._save = library["pyvmm_plic_save"]
        self._load = library["pyvmm_plic_load"]
        self._close = library["pyvmm_plic_close"]
        self._enabled.restype = self._pending.restype = ctypes.c_uint32

    def _make(self, ioctl: int, fds: Sequence[int]) -> tuple[_Shared, ctypes.Array[_Context]]:
        contexts = (_Context * len(fds))(*(_Context(fd=fd) for fd in fds))
        words = self.sources // 64 + 1
        core = _Shared(
            ioctl=ioctl,
            contexts=ctypes.addressof(contexts),
            nr_contexts=len(fds),
            sources=self.sources,
            words=words,
        )
        return core, contexts

    def drive(self, number: int, level: bool) -> None:
        """See Core."""
        _check(self._drive(self._plic, number, level))

    def pulse(self, number: int) -> None:
        """See Core."""
        _check(self._pulse(self._plic, number))

    def claim(self, context: int) -> int:
        """See Core."""
        number: int = self._claim(self._plic, context)
        if number < 0:
            _check(-number)
        return number

    def complete(self, context: int, number: int) -> None:
        """See Core."""
        _check(self._complete(self._plic, context, number))

    def set_edge(self, number: int) -> None:
        """See Core."""
        self._set_edge(self._plic, number)

    def pending(self, word: int) -> int:
        """See Core."""
        value: int = self._pending(self._plic, word)
        return value

    def enabled(self, context: int, word: int) -> int:
        """See Core."""
        value: int = self._enabled(self._plic, context, word)
        return value

    def set_enabled(self, context: int, word: int, value: int) -> None:
        """See Core."""
        _check(self._set_enabled(self._plic, context, word, value))

    def set_priority(self, number: int, priority: int) -> None:
        """See Core."""
        _check(self._set_priority(self._plic, number, priority))

    def set_threshold(self, context: int, threshold: int) -> None:
        """See Core."""
        _check(self._set_threshold(self._plic, context, threshold))

    def reset(self) -> None:
        """See Core."""
        _check(self._reset(self._plic))

    def bits(self) -> list[int]:
        """See Core."""
        saved, contexts = self._make(0, [-1] * self.contexts)
        self._save(self._plic, ctypes.byref(saved))
        bitmaps = [saved.level, saved.pending, saved.claimed, saved.latched]
        bitmaps += [context.enabled for context in contexts]
        return [int.from_bytes(bitmap, "little") for bitmap in bitmaps]

    def load(self, bits: list[int], priorities: list[int], thresholds: list[int]) -> None:
        """See Core."""
        saved, contexts = self._make(0, [-1] * self.contexts)
        size = ctypes.sizeof(_BITS)
        bitmaps = [_BITS.from_buffer_copy((value & self._valid).to_bytes(size, "little")) for value in bits]
        saved.level, saved.pending, saved.claimed, saved.latched, *enabled = bitmaps
        for context, bitmap, threshold in zip(contexts, enabled, thresholds, strict=True):
            context.enabled, context.threshold = bitmap, threshold
        _check(self._load(self._plic, ctypes.byref(saved), bytes(priorities)))

    def close(self) -> None:
        """Signal the vCPUs no more: their descriptors may belong to something else from now on."""
        self._close(self._plic)


def _check(error: int) -> None:
    """Raise why KVM_INTERRUPT, in this call or in one that the run loop answered, failed."""
    if error:
        raise KvmError("KVM_INTERRUPT", error)


def in_c(ioctl: int, fds: Sequence[int], *, sources: int) -> NativePlicCore | None:
    """The core in C; None where that cannot be: without the module, or without an ``ioctl``."""
    try:
        return NativePlicCore(ioctl, fds, sources=sources) if ioctl else None
    except (OSError, AttributeError):
        return None
