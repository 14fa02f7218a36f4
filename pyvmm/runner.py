# SPDX-License-Identifier: Apache-2.0
"""vCPU threads: the KVM_RUN loop and the table of exit reasons.

How a thread is brought out of KVM_RUN: the kick signal is blocked in every vCPU thread, and KVM is told
(KVM_SET_SIGNAL_MASK) to unblock it while the guest runs. A kick that comes too early thus stays pending
and ends the next KVM_RUN at once, so there is no race to lose, no process-wide handler to install, and it
works from any thread. The signal survives KVM_RUN and is taken with sigtimedwait.
"""

from __future__ import annotations

import errno
import os
import signal
from collections import deque

from pyvmm import outcome
from pyvmm.errors import KvmError
from pyvmm.kvm import dump, uapi
from pyvmm.outcome import Outcome
from pyvmm.threads import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from pyvmm.kvm.vcpu import Vcpu
    from pyvmm.mmio.bus import Bus
    from pyvmm.sbi import Sbi

KICK = signal.SIGUSR1

CSR_SEED = 0x015
_SEED_ES16 = 2 << 30  # OPST field: 16 bits of entropy follow (RISC-V scalar cryptography, 4.1)
_SRST_SYSTEM_FAILURE = 1

_RUN_ERRORS = {
    errno.EOPNOTSUPP: "it used an instruction on device memory that KVM cannot emulate, or jumped to where "
    "there is no memory",
    errno.EIO: "it made a misaligned access to device memory",
    errno.EFAULT: "it touched memory that the host cannot provide",
}


class VcpuThread:
    """Runs one vCPU until ``stop``.

    ``on_end`` receives the Outcome when the guest ends, ``on_error`` an exception that nobody foresaw; both
    are called on the vCPU's thread and must not wait for it.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        bus: Bus,
        sbi: Sbi,
        *,
        on_end: Callable[[Outcome], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self.vcpu = vcpu
        self._bus = bus
        self._sbi = sbi
        self._on_end = on_end
        self._on_error = on_error
        self._running = True
        self._posted: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        #: Exit reason -> what to do about it. The trace replaces entries; everything else reads.
        self.handlers: dict[int, Callable[[], None]] = {
            uapi.KVM_EXIT_MMIO: self._on_mmio,
            uapi.KVM_EXIT_INTR: self._on_interrupted,
            uapi.KVM_EXIT_RISCV_SBI: self._on_sbi,
            uapi.KVM_EXIT_RISCV_CSR: self._on_csr,
            uapi.KVM_EXIT_SYSTEM_EVENT: self._on_system_event,
            uapi.KVM_EXIT_FAIL_ENTRY: self._on_fail_entry,
        }

    def start(self) -> None:
        """Begin to run the guest."""
        self._thread = start_thread(self._main, f"vcpu-{self.vcpu.id}")

    def post(self, task: Callable[[], None]) -> None:
        """Run ``task`` on the vCPU's thread between two KVM_RUNs, with no exit left to complete."""
        self._posted.append(task)
        self._kick()

    def request_stop(self) -> None:
        """Make the thread end soon. Callable from any thread, also this one."""
        self._running = False
        self._kick()

    def join(self) -> None:
        """Wait for the thread's end."""
        if self._thread is not None:
            self._thread.join()

    def _kick(self) -> None:
        thread = self._thread
        if thread is None or thread.ident is None or not thread.is_alive():
            return
        try:
            signal.pthread_kill(thread.ident, KICK)
        except ProcessLookupError:
            pass  # it ended just now

    def _main(self) -> None:
        try:
            self.vcpu.set_signal_mask(signal.valid_signals() - {KICK})
            self._loop()
        except BaseException as error:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        """The loop ended with an exception: the guest's fault, if KVM gave up on its instruction, or ours."""
        if isinstance(error, KvmError) and error.ioctl == "KVM_RUN" and error.errno in _RUN_ERRORS:
            why = _RUN_ERRORS[error.errno]
            self._on_end(
                Outcome(
                    outcome.HUNG,
                    f"the guest cannot go on at {dump.position(self.vcpu)}: {why}",
                    detail=dump.registers(self.vcpu),
                )
            )
        else:
            self._on_error(error)

    def _loop(self) -> None:
        run = self.vcpu.run
        handlers = self.handlers
        while self._running:
            reason = run()
            handler = handlers.get(reason)
            if handler is None:
                self._hung(f"KVM stopped it with exit reason {reason}, which pyvmm does not know")
            else:
                handler()

    def _on_mmio(self) -> None:
        address, length, is_write, value = self.vcpu.mmio()
        if is_write:
            self._bus.write(address, length, value)
        else:
            self.vcpu.answer_mmio(length, self._bus.read(address, length))

    def _on_sbi(self) -> None:
        extension, function, args = self.vcpu.sbi()
        error, value = self._sbi.call(extension, function, args)
        self.vcpu.answer_sbi(error, value)

    def _on_csr(self) -> None:
        number, _new, _mask = self.vcpu.csr()
        if number == CSR_SEED:
            self.vcpu.answer_csr(_SEED_ES16 | int.from_bytes(os.urandom(2), "little"))
        else:
            self.vcpu.answer_csr(0)

    def _on_interrupted(self) -> None:
        while signal.sigtimedwait([KICK], 0) is not None:
            pass
        while self._posted:
            self._posted.popleft()()

    def _on_system_event(self) -> None:
        kind, data = self.vcpu.system_event()
        failed = " after a failure" if data[:1] == (_SRST_SYSTEM_FAILURE,) else ""
        if kind == uapi.KVM_SYSTEM_EVENT_SHUTDOWN:
            self._end(Outcome(outcome.POWEROFF, f"the guest powered off{failed}"))
        elif kind == uapi.KVM_SYSTEM_EVENT_RESET:
            self._end(Outcome(outcome.REBOOT, f"the guest asked for a reboot{failed}"))
        else:
            self._hung(f"KVM reported system event {kind}")

    def _on_fail_entry(self) -> None:
        reason, cpu = self.vcpu.fail_entry()
        self._hung(
            f"KVM could not enter it on host CPU {cpu} (reason 0x{reason:x}): no IMSIC guest file is free; "
            "use --aia-mode auto or emul"
        )

    def _end(self, end: Outcome) -> None:
        self._running = False
        self._on_end(end)

    def _hung(self, why: str) -> None:
        self._end(Outcome(outcome.HUNG, f"the guest cannot go on: {why}", detail=dump.registers(self.vcpu)))
