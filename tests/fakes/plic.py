# SPDX-License-Identifier: Apache-2.0
"""Cores of PLICs, in either language, whose outputs a HartSignal sees."""

from __future__ import annotations

import ctypes

import pytest
from fakes.native import needs_native

from pyvmm.devices.base import HartSignal
from pyvmm.devices.nativeplic import NativePlicCore
from pyvmm.devices.pliccore import PlicCore
from pyvmm.kvm import uapi

_IOCTL = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_ulong, ctypes.POINTER(ctypes.c_uint32), use_errno=True
)
_ANSWER = ctypes.PYFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int, ctypes.c_void_p
)
_LEVELS = {uapi.KVM_INTERRUPT_SET: True, uapi.KVM_INTERRUPT_UNSET: False}
_FIRST_FD = 1000


class CoreInC(NativePlicCore):
    """``signal`` is called in the place of KVM_INTERRUPT, which fails while ``errno`` is not 0.

    The C then needs the GIL, so this is for one thread.
    """

    def __init__(self, signal: HartSignal, *, sources: int, harts: int) -> None:
        self.errno = 0
        self._signal = signal
        self._ioctl = _IOCTL(self._interrupt)  # kept while the C may call it
        address = ctypes.cast(self._ioctl, ctypes.c_void_p).value
        super().__init__(address, range(_FIRST_FD, _FIRST_FD + harts), sources=sources)

    def _interrupt(self, fd, request, argument) -> int:
        ctypes.set_errno(self.errno)
        if self.errno:
            return -1
        assert request == uapi.KVM_INTERRUPT
        self._signal(fd - _FIRST_FD, _LEVELS[argument[0]])
        return 0

    def answer_directly(self, offset: int, length: int, is_write: bool, value: int) -> int | None:
        """As the run loop does it: what the guest reads, or 0 for a store; None when it is left to Python."""
        function, core = self.answer
        data = ctypes.c_uint64(value)
        if not _ANSWER(function)(core, offset, length, is_write, ctypes.addressof(data)):
            assert data.value == value
            return None
        return 0 if is_write else data.value


#: Parameters: what makes a core.
CORES = [pytest.param(PlicCore, id="python"), pytest.param(CoreInC, id="c", marks=needs_native)]
