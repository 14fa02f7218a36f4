# SPDX-License-Identifier: Apache-2.0
"""PLICs with either core, whose outputs a HartSignal sees."""

from __future__ import annotations

import ctypes

import pytest
from fakes.native import needs_native

from pyvmm.devices.base import HartSignal
from pyvmm.devices.nativeplic import NativePlicCore
from pyvmm.devices.plic import Plic
from pyvmm.devices.pliccore import PlicCore
from pyvmm.kvm import uapi

_IOCTL = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_ulong, ctypes.POINTER(ctypes.c_uint32), use_errno=True
)
_LEVELS = {uapi.KVM_INTERRUPT_SET: True, uapi.KVM_INTERRUPT_UNSET: False}
#: Of the first hart's vCPU; the others' follow.
FIRST_FD = 1000


class _InC(NativePlicCore):
    """It calls ``signal`` as if that were KVM_INTERRUPT. The C needs the GIL then: for one thread."""

    def __init__(self, signal: HartSignal, *, sources: int, harts: int) -> None:
        self.errno = 0

        def ioctl(fd, request, argument):
            assert request == uapi.KVM_INTERRUPT
            if self.errno:
                ctypes.set_errno(self.errno)
                return -1
            signal(fd - FIRST_FD, _LEVELS[argument[0]])
            return 0

        self._ioctl = _IOCTL(ioctl)  # kept while the C may call it
        address = ctypes.cast(self._ioctl, ctypes.c_void_p).value
        super().__init__(address, range(FIRST_FD, FIRST_FD + harts), sources=sources)


def plic_in_python(signal: HartSignal, *, sources: int, harts: int) -> Plic:
    """A PLIC all in Python."""
    return Plic(PlicCore(signal, sources=sources, harts=harts))


def plic_in_c(signal: HartSignal, *, sources: int, harts: int) -> Plic:
    """A PLIC with the core in C. ``plic_in_c.core.errno`` is what its KVM_INTERRUPT fails with."""
    return Plic(_InC(signal, sources=sources, harts=harts))


#: Parameters: what makes a PLIC.
MAKERS = [pytest.param(plic_in_python, id="python"), pytest.param(plic_in_c, id="c", marks=needs_native)]
