# SPDX-License-Identifier: Apache-2.0
"""vCPU threads: the KVM_RUN loop and the table of exit reasons.

How a thread is brought out of KVM_RUN: the kick signal is blocked in every vCPU thread, and KVM is told
(KVM_SET_SIGNAL_MASK) to unblock it while the guest runs. A kick that comes too early thus stays pending
and ends the next KVM_RUN at once, so there is no race to lose, no process-wide handler to install, and it
works from any thread. The signal survives KVM_RUN and is taken with sigtimedwait.

Stores that KVM noted down (``pyvmm.shortcut``) came before the exit at hand: they are carried out before it.

Accesses to devices are answered in C where that is possible (``pyvmm.nativerun``): the loop below then sees
only the other exits. Whoever wants something of the thread kicks it, so that the C returns.

A parked vCPU's thread waits for that same signal between two KVM_RUNs, and still runs what is posted to it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading

from pyvmm import nativerun, outcome
from pyvmm.errors import KvmError
from pyvmm.kvm import dump, uapi
from pyvmm.kvm.coalesced import FIRST, LAST
from pyvmm.lean import deque, signals
from pyvmm.outcome import Outcome
from pyvmm.threads import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.kvm.vcpu import Vcpu
    from pyvmm.mmio.bus import Bus
    from pyvmm.sbi import Sbi
    from pyvmm.shortcut import SerialShortcut

KICK = signals.SIGUSR1
_MOST_REASONS = 64
_MMIO = uapi.KVM_EXIT_MMIO

CSR_SEED = 0x015
_SEED_ES16 = 2 << 30  # OPST field: 16 bits of entropy follow (RISC-V scalar cryptography, 4.1)
_SRST_SYSTEM_FAILURE = 1

_RUN_ERRORS = {
    errno.EOPNOTSUPP: "it used an instruction on device memory that KVM cannot emulate, or jumped to where "
    "there is no memory",
    errno.EIO: "it made a misaligned access to device memory",
    errno.EFAULT: "it touched memory that the host cannot provide",
}


def _nothing() -> None:
    """Nobody waits for it."""


class VcpuThread:
    """Runs one vCPU until ``stop``.

    ``serial`` belongs to the machine's serial port, if it has one. ``on_end`` receives the Outcome when the
    guest ends, ``on_error`` an exception that nobody foresaw; both are called on the vCPU's thread and must
    not wait for it.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        bus: Bus,
        sbi: Sbi,
        serial: SerialShortcut | None = None,
        *,
        on_end: Callable[[Outcome], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self.vcpu = vcpu
        self._bus = bus
        self._sbi = sbi
        self._answers = serial.answers if serial else {}
        self._stores = serial.page if serial else bytes(LAST + 1)
        #: Carries out the stores that KVM noted down.
        self.settle = serial.settle if serial else _nothing
        self._on_end = on_end
        self._on_error = on_error
        self._running = True
        self._posted: deque[Callable[[], None]] = deque()
        self._parked: set[object] = set()  # why the guest must not run; of the vCPU's thread alone
        # Exits for the handlers below, by reason; and those answered in C. Written on the vCPU's thread.
        self._exits = [0] * _MOST_REASONS
        self._answered = ctypes.c_uint64()
        self._thread: threading.Thread | None = None
        self._own_on_mmio = self._on_mmio
        #: Exit reason -> what to do about it. The trace replaces entries; everything else reads.
        self.handlers: dict[int, Callable[[], None]] = {
            uapi.KVM_EXIT_MMIO: self._own_on_mmio,
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

    def park(self, reason: object, on_parked: Callable[[], None] = _nothing) -> None:
        """Keep the guest from running until ``unpark`` was called for every reason. From any thread.

        ``on_parked`` is called on the vCPU's thread, which then runs what is posted to it, and no guest;
        not at all when the thread ends before.
        """

        def park() -> None:
            self._parked.add(reason)
            on_parked()

        self.post(park)

    def unpark(self, reason: object) -> None:
        """The guest may run again as far as ``reason`` is concerned. From any thread."""
        self.post(lambda: self._parked.discard(reason))

    @property
    def exits(self) -> list[int]:
        """How often KVM_RUN returned so far, by reason."""
        exits = list(self._exits)
        exits[_MMIO] += self._answered.value
        return exits

    @property
    def alive(self) -> bool:
        """Whether the thread runs, or will: False for one that has ended."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """Whether this is the thread it is called on."""
        return self._thread is threading.current_thread()

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
            signals.pthread_kill(thread.ident, KICK)
        except ProcessLookupError:
            pass  # it ended just now

    def _main(self) -> None:
        self._thread = threading.current_thread()  # `start` may not have come so far
        try:
            self.vcpu.set_signal_mask(signals.valid_signals() - {KICK})
            self._loop()
        except BaseException as error:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        """The loop ended with an exception: the guest's fault, if KVM gave up on its instruction, or ours."""
        number = error.errno if isinstance(error, KvmError) and error.ioctl == "KVM_RUN" else None
        if number is not None:
            try:
                self.settle()  # no handler will
            except KvmError:
                pass  # KVM declared the machine dead, and takes no interrupt any more
        if number in _RUN_ERRORS:
            why = _RUN_ERRORS[number]
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
        handlers = self.handlers
        exits = self._exits
        stores = self._stores
        run = nativerun.runner(
            self.vcpu, self._bus, handlers, self._own_on_mmio, self._answered, self._answers, stores
        )
        run = run or self.vcpu.run
        while self._running:
            reason = run()
            if reason != _MMIO and stores[LAST] != stores[FIRST]:
                self.settle()
            handler = handlers.get(reason)
            if handler is None:
                self._hung(f"KVM stopped it with exit reason {reason}, which pyvmm does not know")
            else:
                exits[reason] += 1
                handler()
        self.settle()  # a load of the line status may have been the last exit

    def _on_mmio(self) -> None:
        if self._answers and self.vcpu.answer_known(self._answers):
            return
        address, length, is_write, value = self.vcpu.mmio()
        if self._stores[LAST] != self._stores[FIRST]:
            self.settle()
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
        while signals.sigtimedwait([KICK], 0) is not None:
            pass
        self._run_posted()
        while self._parked and self._running:
            signals.sigwait((KICK,))
            self._run_posted()

    def _run_posted(self) -> None:
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
