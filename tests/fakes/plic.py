# SPDX-License-Identifier: Apache-2.0
"""Cores of PLICs, in either language, whose outputs a HartSignal sees."""

from __future__ import annotations

import ctypes
import errno

import pytest
from fakes.native import needs_native

from pyvmm.devices.base import HartSignal
from pyvmm.devices.nativeplic import NativePlicCore
from pyvmm.devices.pliccore import PlicCore
from pyvmm.kvm import uapi

_IOCTL = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_ulong, ctypes.POINTER(ctypes.c_uint32), use_errno=True
)
#: What ``direct_function`` of the run loop returns and takes.
DIRECT_FUNCTION = (
    *(ctypes.c_int, ctypes.c_void_p),
    *(ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int, ctypes.c_void_p),
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
        assert request == uapi.KVM_INTERRUPT
        failure = self.errno if fd >= 0 else errno.EBADF
        if failure:
            ctypes.set_errno(failure)
            return -1
        self._signal(fd - _FIRST_FD, _LEVELS[argument[0]])
        return 0

    def answer_directly(self, offset: int, length: int, is_write: bool, value: int) -> int | None:
        """See the function of that name."""
        return answer_directly(*self.answer, offset, length, is_write, value)


def answer_directly(
    function: int, context: int, offset: int, length: int, is_write: bool, value: int
) -> int | None:
    """As the run loop does it: what the guest reads, or 0 for a store; None when it is left to Python."""
    data = ctypes.c_uint64(value)
    call = ctypes.PYFUNCTYPE(*DIRECT_FUNCTION)(function)
    if not call(context, offset, length, is_write, ctypes.addressof(data)):
        assert data.value == value
        return None
    return 0 if is_write else data.value


#: Parameters: what makes a core.
CORES = [pytest.param(PlicCore, id="python"), pytest.param(CoreInC, id="c", marks=needs_native)]
