# SPDX-License-Identifier: Apache-2.0
"""KVM_RUN with the accesses to devices' registers answered in C, where the native module was built.

Most exits of a guest are loads and stores of device registers. What is around the device's own work (the GIL,
the run page, finding the device, its lock, counting) costs several times that work in Python, and always goes
the same way. ``_native_run.c`` does it as ``VcpuThread._on_mmio`` and ``Bus`` do, its twins: they answer what
the C leaves alone, and everything where there is no module. Guests and devices see no difference
(docs/adr/0016).
"""

from __future__ import annotations

import ctypes

from pyvmm import native
from pyvmm.kvm import uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.kvm.vcpu import Vcpu
    from pyvmm.mmio.bus import Bus

#: The C function, whose number changes with what is given to it.
MAKER = "pyvmm_runner_3"


def runner(
    vcpu: Vcpu,
    bus: Bus,
    handlers: dict[int, Callable[[], None]],
    on_mmio: Callable[[], None],
    answered: ctypes.c_uint64,
    answers: dict[int, int],
    stores: bytes | ctypes.Array[ctypes.c_char],
) -> Callable[[], int] | None:
    """Like ``vcpu.run``, but returns only with an exit that is not answered yet; None where that cannot be.

    Answered and counted in ``answered`` are accesses for which ``handlers`` has ``on_mmio``, when the exit
    comes, and whatever ``bus.direct`` is for. ``answers`` and ``stores`` are the serial port's
    (``pyvmm.shortcut``). For the vCPU's own thread.
    """
    ioctl = vcpu.kernel.run_address()
    make = native.maker(MAKER)
    if not ioctl or make is None:
        return None
    # As _native_run.c's `run` takes it apart.
    bound = (
        ioctl,
        vcpu.fd,
        vcpu.page_address,
        0 if isinstance(stores, bytes) else ctypes.addressof(stores),
        bus.direct.address,
        ctypes.addressof(answered),
        vcpu.stopped,
        handlers,
        uapi.KVM_EXIT_MMIO,
        on_mmio,
        answers,
        bus.published,
    )
    run: Callable[[], int] = make(bound)
    return run
