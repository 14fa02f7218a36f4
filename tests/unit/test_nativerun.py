# SPDX-License-Identifier: Apache-2.0
"""The run loop in C: what it answers by itself, what it leaves to Python, and what it keeps alive."""

import ctypes
import gc
import sys
import threading
import weakref

import pytest
from fakes.kernel import FakeKernel, mmio_read, mmio_write, shutdown, wait_for_kick
from fakes.native import needs_native

from pyvmm import native, nativerun
from pyvmm.kvm import uapi
from pyvmm.kvm.coalesced import LAST
from pyvmm.kvm.system import Kvm
from pyvmm.mmio.bus import Bus
from pyvmm.mmio.regs import Reg, RegisterDevice

pytestmark = needs_native

DEVICE = 0x1000_0000
LEFT_TO_PYTHON = uapi.KVM_EXIT_MMIO


class Device:
    """Keeps the last value stored, and calls ``hook`` for every access, with its lock held."""

    def __init__(self):
        self.lock = threading.Lock()
        self.value = 0
        self.hook = lambda: None
        self.after = None

    def read(self, offset, size):
        assert self.lock.locked()
        self.hook()
        return self.value

    def write(self, offset, size, value):
        assert self.lock.locked()
        self.hook()
        self.value = value
        return self.after


class Vcpu:
    """A vCPU with a bus and a device on it; ``run`` is C's."""

    def __init__(self, *script, answers=None, stores=b""):
        self.kernel = FakeKernel(script)
        self.opened = [Kvm(kernel=self.kernel)]
        self.opened.append(self.opened[0].create_vm())
        self.opened.append(self.opened[1].create_vcpu(0))
        self.bus, self.device = Bus(), Device()
        self.mapping = self.bus.map(DEVICE, 0x100, self.device, name="device")
        self.answered = ctypes.c_uint64()
        self.on_mmio = lambda: None
        self.handlers = {uapi.KVM_EXIT_MMIO: self.on_mmio}
        parts = (self.opened[2], self.bus, self.handlers, self.on_mmio)
        self.run = nativerun.runner(*parts, self.answered, answers or {}, stores)

    @property
    def answers(self):
        return self.kernel.vm.vcpus[0].answers

    def close(self):
        for thing in reversed(self.opened):
            thing.close()


@pytest.fixture
def vcpu():
    made = []

    def make(*script, **options):
        made.append(Vcpu(*script, **options))
        return made[-1]

    yield make
    for it in made:
        it.close()


def test_accesses_to_devices_are_answered_and_counted(vcpu):
    it = vcpu(mmio_write(DEVICE + 4, 4, 0x1234), mmio_read(DEVICE, 8), shutdown())
    assert it.run() == uapi.KVM_EXIT_SYSTEM_EVENT
    assert it.answers == [0x1234]
    assert (it.answered.value, it.mapping.accesses) == (2, 2)


@pytest.mark.parametrize("value", [-1, 2**64 + 5, True])
def test_answer_is_cut_to_the_length_of_the_load(vcpu, value):
    it = vcpu(mmio_read(DEVICE, 2), shutdown())
    it.device.value = value
    it.run()
    assert it.answers == [value & 0xFFFF]


@pytest.mark.parametrize("address", [DEVICE, DEVICE + 0xFC])
def test_access_at_the_edge_of_a_device_is_its_own(vcpu, address):
    it = vcpu(mmio_read(address, 4), shutdown())
    assert it.run() == uapi.KVM_EXIT_SYSTEM_EVENT


@pytest.mark.parametrize("address", [0, DEVICE - 2, DEVICE + 0xFE, DEVICE + 0x100, 2**64 - 4])
def test_access_outside_of_every_device_is_left_to_python(vcpu, address):
    it = vcpu(mmio_read(address, 4))
    assert it.run() == LEFT_TO_PYTHON
    assert (it.answered.value, it.mapping.accesses) == (0, 0)


class Word(RegisterDevice):
    NAME = "word"
    SIZE = 0x10
    VALUE = Reg(0x04, 32)

    def __init__(self):
        super().__init__()
        self.reset()


def test_register_is_reached_by_accesses_of_its_own_place_and_size_only(vcpu):
    at = DEVICE + 0x1000
    stores = [mmio_write(at + 4, 4, value) for value in (1, 2, 3)]
    others = [mmio_write(at + 4, 2, 4), mmio_write(at + 8, 4, 5), mmio_read(at + 4, 1)]
    it = vcpu(*stores, mmio_read(at + 4, 4), mmio_read(at + 4, 4), *others, shutdown())
    device = Word()
    it.bus.map(at, 0x10, device, name="word")
    assert it.run() == uapi.KVM_EXIT_SYSTEM_EVENT
    assert (device.VALUE, it.answers, device.odd, it.answered.value) == (3, [3, 3, 0], 3, 8)


class Counter:
    """A direct_function: writes down what it is asked, and answers what is at even offsets."""

    def __init__(self):
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_uint64,
            ctypes.c_uint32,
            ctypes.c_int,
            ctypes.POINTER(ctypes.c_uint64),
        )
        self.asked = []
        self._function = kind(self._answer)
        self.address = ctypes.cast(self._function, ctypes.c_void_p).value

    def _answer(self, context, offset, length, is_write, data):
        self.asked.append((context, offset, length, is_write, data[0] if is_write else None))
        data[0] = 2**64 - 1 - len(self.asked)
        return offset % 2 == 0


def test_direct_accesses_are_answered_without_the_device_and_counted(vcpu):
    it = vcpu(mmio_write(DEVICE + 0x12, 2, 0x1_2345), mmio_read(DEVICE + 0x14, 4), shutdown())
    it.device.hook = pytest.fail
    counter = Counter()
    it.mapping.answer_directly(0x10, 8, counter.address, 7)
    assert it.run() == uapi.KVM_EXIT_SYSTEM_EVENT
    assert counter.asked == [(7, 2, 2, 1, 0x2345), (7, 4, 4, 0, None)]
    assert it.answers == [0xFFFF_FFFD]
    assert (it.answered.value, it.mapping.accesses) == (2, 2)


def test_direct_access_that_its_function_refuses_is_the_devices(vcpu):
    it = vcpu(mmio_write(DEVICE + 0x11, 1, 0x12), mmio_read(DEVICE + 0x11, 1), shutdown())
    counter = Counter()
    it.mapping.answer_directly(0x10, 8, counter.address, 0)
    assert it.run() == uapi.KVM_EXIT_SYSTEM_EVENT
    assert (len(counter.asked), it.answers, it.device.value) == (2, [0x12], 0x12)
    assert (it.answered.value, it.mapping.accesses) == (2, 2)


@pytest.mark.parametrize(("offset", "size"), [(0xE, 4), (0xF, 1), (0x16, 4), (0x17, 2), (0x18, 1), (0xC, 8)])
def test_access_that_is_not_all_within_the_direct_range_is_the_devices(vcpu, offset, size):
    it = vcpu(mmio_read(DEVICE + offset, size), shutdown())
    counter = Counter()
    it.mapping.answer_directly(0x10, 8, counter.address, 0)
    assert it.run() == uapi.KVM_EXIT_SYSTEM_EVENT
    assert (counter.asked, it.mapping.accesses) == ([], 1)


def test_nothing_is_answered_directly_once_somebody_wants_to_see_accesses(vcpu):
    it = vcpu(mmio_read(DEVICE + 0x10, 4), shutdown())
    counter = Counter()
    it.mapping.answer_directly(0x10, 8, counter.address, 0)
    it.bus.direct.stop("a trace")
    assert it.run() == uapi.KVM_EXIT_SYSTEM_EVENT
    assert (counter.asked, it.mapping.accesses) == ([], 1)


def test_accesses_are_answered_directly_again_once_nobody_wants_to_see_them(vcpu):
    look = mmio_read(DEVICE + 0x10, 4)
    it = vcpu(look, shutdown(), look, shutdown())
    counter = Counter()
    it.mapping.answer_directly(0x10, 8, counter.address, 0)
    for watcher in ("one", "another"):
        it.bus.direct.stop(watcher)
    it.bus.direct.resume("one")
    it.run()
    assert (len(counter.asked), it.mapping.accesses) == (0, 1)
    it.bus.direct.resume("another")
    it.run()
    assert (len(counter.asked), it.mapping.accesses) == (1, 2)


def test_every_access_is_answered_once_while_watchers_come_and_go(vcpu):
    number = 3000
    it = vcpu(*[mmio_read(DEVICE + 0x10, 4)] * number, shutdown())
    counter, by_device, over = Counter(), [], threading.Event()
    it.device.hook = lambda: by_device.append(1)
    it.mapping.answer_directly(0x10, 8, counter.address, 0)

    def watch(watcher):
        while not over.is_set():
            it.bus.direct.stop(watcher)
            it.bus.direct.resume(watcher)

    threads = [threading.Thread(target=watch, args=(watcher,)) for watcher in range(2)]
    for thread in threads:
        thread.start()
    reason = it.run()
    over.set()
    for thread in threads:
        thread.join()
    assert reason == uapi.KVM_EXIT_SYSTEM_EVENT
    assert len(counter.asked) + len(by_device) == number
    assert (it.answered.value, it.mapping.accesses) == (number, number)


def test_noted_stores_come_before_a_direct_access(vcpu):
    stores = (ctypes.c_char * 4096)()
    stores[LAST] = 1
    it = vcpu(mmio_read(DEVICE + 0x10, 4), stores=stores)
    counter = Counter()
    it.mapping.answer_directly(0x10, 8, counter.address, 0)
    assert it.run() == LEFT_TO_PYTHON
    assert counter.asked == []


def test_access_is_left_to_python_while_another_handler_is_installed(vcpu):
    it = vcpu(mmio_read(DEVICE, 4), mmio_read(DEVICE, 4), mmio_read(DEVICE, 4), shutdown())
    it.handlers[uapi.KVM_EXIT_MMIO] = lambda: None
    assert [it.run(), it.run(), it.answered.value] == [LEFT_TO_PYTHON, LEFT_TO_PYTHON, 0]
    it.handlers[uapi.KVM_EXIT_MMIO] = it.on_mmio
    assert [it.run(), it.answered.value] == [uapi.KVM_EXIT_SYSTEM_EVENT, 1]


def test_access_is_left_to_python_while_stores_come_first(vcpu):
    stores = (ctypes.c_char * 8)()
    it = vcpu(mmio_read(DEVICE, 4), mmio_read(DEVICE, 4), shutdown(), stores=stores)
    stores[4] = 1
    assert [it.run(), it.answered.value] == [LEFT_TO_PYTHON, 0]
    stores[0] = 1
    assert [it.run(), it.answered.value] == [uapi.KVM_EXIT_SYSTEM_EVENT, 1]


def test_known_load_needs_no_device_even_while_stores_wait(vcpu):
    stores = (ctypes.c_char * 8)()
    stores[4] = 1
    it = vcpu(mmio_read(DEVICE + 5, 1), shutdown(), answers={DEVICE + 5: 0x60}, stores=stores)
    assert it.run() == uapi.KVM_EXIT_SYSTEM_EVENT
    assert (it.answers, it.answered.value, it.mapping.accesses) == ([0x60], 1, 0)


def test_what_a_store_asked_for_runs_without_the_lock(vcpu):
    it = vcpu(
        mmio_write(DEVICE, 4, 1), mmio_write(DEVICE, 4, 2), mmio_write(DEVICE + 0x1000, 4, 3), shutdown()
    )
    it.device.after = lambda: it.mapping.move(DEVICE + 0x1000)
    assert it.run() == LEFT_TO_PYTHON  # the second store: the device is gone
    assert it.device.value == 1
    it.device.after = None
    assert it.run() == uapi.KVM_EXIT_SYSTEM_EVENT
    assert it.device.value == 3


def test_bus_that_changes_before_the_lock_is_taken_is_looked_at_again_by_python(vcpu):
    class Moving:
        """A lock before which somebody else's move comes first."""

        def acquire(self):
            self.lock.acquire()
            if it.bus.find(DEVICE):
                it.bus._move(it.mapping, type(it.mapping.range)(DEVICE + 0x1000, 0x100))

        def release(self):
            self.lock.release()

    it = vcpu(mmio_write(DEVICE, 4, 1), shutdown())
    it.mapping.unmap()
    it.device.lock, lock = Moving(), it.device.lock
    it.device.lock.lock = lock
    it.mapping = it.bus.map(DEVICE, 0x100, it.device, name="device")
    assert it.run() == LEFT_TO_PYTHON
    assert (it.device.value, it.answered.value, it.mapping.accesses, lock.locked()) == (0, 0, 0, False)


def test_failure_of_a_device_comes_out_and_leaves_the_lock_free(vcpu):
    it = vcpu(mmio_read(DEVICE, 4))
    it.device.hook = lambda: 1 // 0
    with pytest.raises(ZeroDivisionError):
        it.run()
    assert not it.device.lock.locked()


def test_failure_of_what_a_store_asked_for_comes_out(vcpu):
    it = vcpu(mmio_write(DEVICE, 4, 1))
    it.device.after = lambda: 1 // 0
    with pytest.raises(ZeroDivisionError):
        it.run()


def test_answer_that_is_no_number_is_an_error(vcpu):
    it = vcpu(mmio_read(DEVICE, 4))
    it.device.value = "seven"
    with pytest.raises(TypeError):
        it.run()


def test_device_may_run_the_vcpu_and_the_load_is_answered_as_it_was(vcpu):
    """Whoever completes the exit from within overwrites the run page."""
    it = vcpu(mmio_read(DEVICE, 4), shutdown())
    page = it.kernel.vm.vcpus[0].page
    it.device.hook = lambda: page.__setitem__(slice(32, 56), b"\xff" * 24)
    it.device.value = 2**64 - 1
    assert it.run() == uapi.KVM_EXIT_SYSTEM_EVENT
    assert it.answers == [0xFFFF_FFFF]


def test_kick_comes_out_as_an_interrupted_run(vcpu):
    it = vcpu(wait_for_kick())
    it.opened[2].immediate_exit = True
    assert it.run() == uapi.KVM_EXIT_INTR


def test_other_threads_run_python_while_the_guest_runs(vcpu):
    ran = threading.Event()
    it = vcpu(lambda fake: 0 if ran.wait(10) else 1, shutdown())
    thread = threading.Thread(target=ran.set)
    thread.start()
    assert it.run() != uapi.KVM_EXIT_INTR
    thread.join()


def test_nothing_is_leaked_and_cycles_are_collected(vcpu):
    script = [mmio_write(DEVICE, 4, 2**31), mmio_read(DEVICE + 8, 4)] * 1000
    it = vcpu(*script, shutdown())
    it.device.value = 2**40
    it.run()
    gc.collect()
    held = sys.getrefcount(it.bus.published[0]), sys.getrefcount(it.bus.published[0][2][0])
    it.kernel.vm.vcpus[0].script.extend([*script, shutdown()])
    it.run()
    assert (sys.getrefcount(it.bus.published[0]), sys.getrefcount(it.bus.published[0][2][0])) == held

    class Handler:
        def __call__(self):
            """Never called."""

    handler = Handler()
    handlers = {uapi.KVM_EXIT_MMIO: handler}
    handler.run = nativerun.runner(it.opened[2], it.bus, handlers, handler, it.answered, {}, b"")
    gone = weakref.ref(handler)
    del handler, handlers
    gc.collect()
    assert gone() is None


def test_without_the_module_there_is_no_such_loop(vcpu, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "FILE", str(tmp_path / "_native.abi3.so"))
    assert vcpu().run is None


def test_module_from_before_the_loop_is_passed_over(vcpu, monkeypatch):
    monkeypatch.setattr(native, "FILE", ctypes.CDLL("libc.so.6")._name)
    assert vcpu().run is None


def test_kernel_that_is_only_python_is_passed_over(vcpu, monkeypatch):
    monkeypatch.setattr(FakeKernel, "run_address", lambda self: 0)
    assert vcpu().run is None


def test_python_without_a_gil_is_passed_over(vcpu, monkeypatch):
    monkeypatch.setattr(sys, "abiflags", "t")
    assert vcpu().run is None
