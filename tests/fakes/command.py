# SPDX-License-Identifier: Apache-2.0
"""``python -m fakes.command GUEST run ...``: the pyvmm command, with its machine on a fake KVM.

In the environment: ``CLOSING_FD`` gets a byte when the machine begins to close; ``PAUSE_LIMIT`` is how long a
pause waits, in seconds; ``IGNORED`` is a signal that is ignored from the start, as nohup does it. The others
are not, whatever the tests were started from.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from typing import Any

from fakes.guests import IER, LSR, echo, flood, idle, prints
from fakes.kernel import (
    FakeKernel,
    FakeVcpu,
    call,
    fail,
    failure,
    mmio_read,
    mmio_write,
    reset,
    wait_for_kick,
)
from fakes.threads import PATIENCE

from pyvmm import cli, machine, pausing
from pyvmm.cli import traceout
from pyvmm.console import output
from pyvmm.kvm import uapi


def stuck(vcpu: FakeVcpu) -> None:
    """Its thread never ends, whoever kicks it."""
    threading.Event().wait()


def without_interrupts(vcpu: FakeVcpu) -> None:
    """From now on KVM fails to drive a wire."""
    vcpu.vm.ioctls[uapi.KVM_IRQ_LINE] = lambda argument: fail(errno.EIO)


GUESTS: dict[str, list[Any]] = {
    "hello": prints(b"hello\n"),
    "idle": [*prints(b"ready\n"), idle],
    "echo": [*prints(b"ready\n"), echo],
    "flood": [flood],
    "stuck": [*prints(b"ready\n"), stuck],
    "reboot": [reset()],
    "panic": [*prints(b"Kernel panic - not syncing: x\n---[ end Kernel panic - not syncing: x ]---\n"), idle],
    "misaligned": [failure(errno.EIO)],
    "no-memory": [failure(errno.ENOMEM)],
    "no-interrupts": [call(without_interrupts), mmio_write(IER, 1, 2), wait_for_kick()],
    # Says "done" once it got through many accesses, which are traced or not.
    "looking": [*[mmio_read(LSR, 1)] * 4000, *prints(b"done\n"), echo],
}


class FakedMachine(machine.Machine):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, kernel=FakeKernel(GUESTS[sys.argv[1]]), **options)

    def close(self) -> None:
        if "CLOSING_FD" in os.environ:
            os.write(int(os.environ["CLOSING_FD"]), b"c")
        super().close()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        ignored = os.environ.get("IGNORED") == str(int(number))
        signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
    machine.Machine = FakedMachine  # type: ignore[misc]
    output._HIGH_WATER = 1 << 14  # it takes little to fill a buffer
    pausing.LIMIT = float(os.environ.get("PAUSE_LIMIT", pausing.LIMIT))
    machine._PATIENCE = 0.0  # nor long to give up on who takes nothing of the console,
    traceout._PATIENCE = PATIENCE  # but who reads the trace late gets all of it
    sys.exit(cli.main(sys.argv[2:]))
