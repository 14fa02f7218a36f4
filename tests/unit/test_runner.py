# SPDX-License-Identifier: Apache-2.0
import errno
import signal
import threading
from queue import SimpleQueue

import pytest
from fakes.guests import idle
from fakes.kernel import (
    Exit,
    FakeKernel,
    call,
    fail,
    fail_entry,
    failure,
    mmio_read,
    mmio_write,
    shutdown,
    system_event,
    wait_for_kick,
)
from fakes.native import needs_native
from fakes.threads import PATIENCE, happens, in_time

from pyvmm import outcome
from pyvmm.errors import KvmError
from pyvmm.kvm import regs, uapi
from pyvmm.kvm.system import Kvm
from pyvmm.mmio.bus import Bus
from pyvmm.runner import KICK, VcpuThread

DEVICE = 0x1000_0000
PC = regs.core("pc")


class Hooked:
    """A device that calls ``hook`` for every access."""

    def __init__(self, hook):
        self.lock = threading.Lock()
        self.hook = hook

    def read(self, offset, size):
        self.hook()
        return 0x5A

    def write(self, offset, size, value):
        self.hook()


class Runner:
    """A vCPU thread on a fake KVM; ``end`` is what it reported, an Outcome or an exception."""

    def __init__(self, *script, in_c):
        self._started = threading.Event()
        self.kernel = FakeKernel([call(lambda vcpu: happens(self._started)), *script], in_c=in_c)
        self.bus = Bus()
        self.opened = [Kvm(kernel=self.kernel)]
        self.opened.append(self.opened[0].create_vm())
        self.opened.append(self.opened[1].create_vcpu(0))
        self.vcpu = self.kernel.vm.vcpus[0]
        self._ends = SimpleQueue()
        self.thread = VcpuThread(
            self.opened[2], self.bus, None, on_end=self._ends.put, on_error=self._ends.put
        )

    @property
    def end(self):
        return self._ends.get(timeout=PATIENCE)

    def start(self):
        self.thread.start()
        self._started.set()

    def close(self):
        self.thread.request_stop()
        in_time(self.thread.join)
        for thing in reversed(self.opened):
            thing.close()


@pytest.fixture(params=[pytest.param(True, id="C", marks=needs_native), pytest.param(False, id="Python")])
def runner(request):
    made = []

    def make(*script):
        made.append(Runner(*script, in_c=request.param))
        return made[-1]

    yield make
    for it in made:
        it.close()


def test_posted_task_runs_once_and_the_guest_goes_on(runner):
    sitting, ran = threading.Event(), []
    it = runner(call(lambda vcpu: sitting.set()), wait_for_kick(), shutdown())
    it.start()
    happens(sitting)
    it.thread.post(lambda: ran.append(threading.current_thread().name))
    assert it.end.reason == outcome.POWEROFF
    assert ran == ["vcpu-0"]


def test_tasks_that_share_a_kick_all_run_in_order(runner):
    ran = []
    it = runner(mmio_write(DEVICE, 4, 1), shutdown())

    def post():
        for number in range(3):
            it.thread.post(lambda number=number: ran.append(number))

    it.bus.map(DEVICE, 0x1000, Hooked(post), name="hooked")
    it.start()
    assert it.end.reason == outcome.POWEROFF
    assert ran == [0, 1, 2]


def test_task_finds_no_exit_left_to_complete(runner):
    seen = []
    it = runner(mmio_read(DEVICE, 1), shutdown())

    def post():
        it.thread.post(lambda: seen.append((it.thread.vcpu.get_reg(PC), list(it.vcpu.answers))))

    it.vcpu.registers[PC] = 0x8020_0000
    it.bus.map(DEVICE, 0x1000, Hooked(post), name="hooked")
    it.start()
    assert it.end.reason == outcome.POWEROFF
    assert seen == [(0x8020_0004, [0x5A])]


def test_stop_ends_a_guest_that_never_leaves_kvm(runner):
    sitting = threading.Event()
    it = runner(call(lambda vcpu: sitting.set()), idle)
    it.start()
    happens(sitting)
    it.thread.request_stop()
    in_time(it.thread.join)


def test_stop_from_its_own_thread_lets_nothing_more_of_the_guest_run(runner):
    it = runner(mmio_write(DEVICE, 4, 1), shutdown())
    it.bus.map(DEVICE, 0x1000, Hooked(it.thread.request_stop), name="hooked")
    it.start()
    in_time(it.thread.join)
    assert len(it.vcpu.script) == 1


def test_stop_before_the_start_keeps_the_guest_from_running(runner):
    it = runner(shutdown())
    it.thread.request_stop()
    it.start()
    in_time(it.thread.join)
    assert not it.vcpu.has_run


def test_kick_after_the_end_is_harmless(runner):
    it = runner(shutdown())
    it.start()
    assert it.end.reason == outcome.POWEROFF
    in_time(it.thread.join)
    it.thread.post(lambda: None)
    it.thread.request_stop()


def test_guest_runs_with_every_signal_blocked_but_the_kick(runner):
    it = runner(shutdown())
    it.start()
    assert it.end.reason == outcome.POWEROFF
    blocked = {number for number in signal.valid_signals() if it.vcpu.signal_mask >> (number - 1) & 1}
    assert signal.valid_signals() - blocked == {KICK}


def test_vcpu_thread_leaves_every_signal_to_the_main_thread(runner):
    masks = []
    it = runner(call(lambda vcpu: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))), shutdown())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    it.start()
    assert it.end.reason == outcome.POWEROFF
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, KICK} <= masks[0]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@pytest.mark.parametrize(
    ("step", "reason", "message"),
    [
        (system_event(uapi.KVM_SYSTEM_EVENT_SHUTDOWN, 0), outcome.POWEROFF, "powered off"),
        (system_event(uapi.KVM_SYSTEM_EVENT_SHUTDOWN, 1), outcome.POWEROFF, "powered off after a failure"),
        (system_event(uapi.KVM_SYSTEM_EVENT_RESET, 0), outcome.REBOOT, "asked for a reboot"),
        (system_event(uapi.KVM_SYSTEM_EVENT_RESET, 1), outcome.REBOOT, "asked for a reboot after a failure"),
        (system_event(9), outcome.HUNG, "cannot go on: KVM reported system event 9"),
        (
            Exit(77),
            outcome.HUNG,
            "cannot go on: KVM stopped it with exit reason 77, which pyvmm does not know",
        ),
    ],
)
def test_end_of_the_guest_is_said_in_words(runner, step, reason, message):
    it = runner(step)
    it.start()
    end = it.end
    assert (end.reason, end.message) == (reason, f"the guest {message}")
    in_time(it.thread.join)


def test_guest_that_cannot_be_entered_is_told_what_to_change(runner):
    it = runner(fail_entry(reason=0x8, cpu=3))
    it.start()
    end = it.end
    assert end.reason == outcome.HUNG
    assert "on host CPU 3 (reason 0x8)" in end.message
    assert end.message.endswith("use --aia-mode auto or emul")


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EINVAL])
def test_failure_of_the_host_in_kvm_run_is_an_error_and_not_the_guests_end(runner, number):
    it = runner(failure(number))
    it.start()
    error = it.end
    assert isinstance(error, KvmError)
    assert (error.ioctl, error.errno) == ("KVM_RUN", number)


@pytest.mark.parametrize("number", [errno.EIO, errno.EFAULT, errno.EOPNOTSUPP])
def test_failure_of_another_ioctl_is_an_error_whatever_its_number(runner, number):
    it = runner(mmio_write(DEVICE, 4, 1), shutdown())
    it.bus.map(DEVICE, 0x1000, Hooked(lambda: it.thread.vcpu.interrupt(True)), name="hooked")
    it.vcpu.ioctls[uapi.KVM_INTERRUPT] = lambda argument: fail(number)
    it.start()
    error = it.end
    assert isinstance(error, KvmError)
    assert (error.ioctl, error.errno) == ("KVM_INTERRUPT", number)


def test_failure_in_a_task_is_an_error(runner):
    it = runner(wait_for_kick())
    it.start()
    it.thread.post(lambda: 1 // 0)
    assert isinstance(it.end, ZeroDivisionError)


def test_guest_of_a_dead_machine_ends_without_registers(runner):
    """After some failures KVM answers every ioctl on the machine with EIO."""
    it = runner(failure(errno.EIO))
    it.vcpu.ioctls[uapi.KVM_GET_ONE_REG] = lambda argument: fail(errno.EIO)
    it.start()
    end = it.end
    assert (end.reason, end.exit_code) == (outcome.HUNG, 254)
    assert "at pc unknown on CPU 0" in end.message
    assert "unknown" in end.detail
