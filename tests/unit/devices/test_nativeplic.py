# SPDX-License-Identifier: Apache-2.0
"""What only the PLIC's core in C does; the rest is what its twin does, in test_plic.py."""

from __future__ import annotations

import ctypes
import errno
import threading
from collections import Counter

import pytest
from fakes.lines import RecordingSignal
from fakes.native import needs_native
from fakes.plic import DIRECT_FUNCTION, CoreInC, answer_directly

from pyvmm import native
from pyvmm.devices import nativeplic
from pyvmm.devices.nativeplic import NativePlicCore
from pyvmm.errors import KvmError

STRIDE = 0x1000
pytestmark = needs_native


@pytest.fixture
def core():
    """Sources 1 to 5 with priority 1, enabled on the first of two contexts."""
    core = CoreInC(RecordingSignal(), sources=63, harts=2)
    for number in range(1, 6):
        core.set_priority(number, 1)
    core.set_enabled(0, 0, 0x3E)
    return core


def test_claim_and_completion_are_answered_directly(core):
    core.drive(3, True)
    assert core.answer_directly(0, 4, False, 0) == 3
    assert core._signal.calls == [(0, True), (0, False)]
    assert core.answer_directly(0, 4, True, 3) == 0
    assert core._signal.calls[2:] == [(0, True)]


def test_completion_takes_the_low_half_of_the_data(core):
    core.drive(3, True)
    core.claim(0)
    core.answer_directly(0, 4, True, 0xDEAD_BEEF << 32 | 3)
    assert core.claim(0) == 3


@pytest.mark.parametrize("is_write", [False, True])
@pytest.mark.parametrize(
    ("offset", "length"),
    [
        *((0, length) for length in (0, 1, 2, 3, 8, 2**32 - 1)),
        *((offset, 4) for offset in (1, 2, 4, STRIDE - 4, STRIDE + 1, 2 * STRIDE, 2**32, 2**64 - STRIDE)),
    ],
)
def test_what_is_no_claim_register_is_left_to_python(core, offset, length, is_write):
    core.drive(3, True)
    core.drive(4, True)
    assert core.claim(0) == 3
    before = core.bits()
    assert core.answer_directly(offset, length, is_write, 3) is None
    assert core.bits() == before


def test_loads_of_enable_bits_are_answered_directly(core):
    core.set_enabled(1, 1, 0x8000_0001)
    for context, word in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 31)):
        found = answer_directly(*core.answer_enable, 0x80 * context + 4 * word, 4, False, 0x55)
        assert found == core.enabled(context, word)


@pytest.mark.parametrize(
    ("offset", "length", "is_write"),
    [(0, 4, True), (0, 2, False), (0, 8, False), (2, 4, False), (0x100, 4, False), (2**64 - 4, 4, False)],
)
def test_what_is_no_load_of_enable_bits_is_left_to_python(core, offset, length, is_write):
    assert answer_directly(*core.answer_enable, offset, length, is_write, 0x55) is None
    assert core.enabled(0, 0) == 0x3E


def test_interrupt_that_kvm_refuses_is_raised(core):
    core.errno = errno.EIO
    with pytest.raises(KvmError, match="KVM_INTERRUPT failed") as caught:
        core.drive(3, True)
    assert caught.value.errno == errno.EIO
    with pytest.raises(KvmError, match="KVM_INTERRUPT failed"):
        core.claim(0)
    core.errno = 0
    assert core.bits()[2] == 1 << 3


def test_interrupt_that_is_refused_in_a_direct_answer_is_raised_by_the_next_access_once(core):
    core.drive(3, True)
    core.errno = errno.EIO
    assert core.answer_directly(0, 4, False, 0) == 3
    assert core.answer_directly(0, 4, True, 3) is None
    core.errno = 0
    with pytest.raises(KvmError, match="KVM_INTERRUPT failed"):
        core.complete(0, 3)
    assert core.answer_directly(0, 4, False, 0) == 3


def test_closed_core_signals_no_descriptor_of_another(core):
    core.close()
    with pytest.raises(KvmError) as caught:
        core.drive(3, True)
    assert caught.value.errno == errno.EBADF
    assert core._signal.calls == []


def test_core_is_not_in_c_without_an_ioctl():
    assert nativeplic.in_c(0, [1], sources=63) is None


@pytest.mark.parametrize("library", [None, ctypes.PyDLL(None)], ids=["none", "another"])
def test_core_is_not_in_c_without_the_module_that_fits(library, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "FILE", str(tmp_path / "none"))
    monkeypatch.setattr(native, "_loaded", {native.FILE: library} if library else {})
    assert nativeplic.in_c(1, [1], sources=63) is None


class Released(NativePlicCore):
    """Its functions are called without the GIL, as the run loop does.

    Nor does KVM_INTERRUPT's stand-in need it: a function of libc's that returns its first argument.
    """

    def __init__(self, monkeypatch, *, sources, harts):
        monkeypatch.setattr(native, "library", lambda: ctypes.CDLL(native.FILE))
        harmless = ctypes.cast(ctypes.CDLL(None)["abs"], ctypes.c_void_p).value
        super().__init__(harmless, range(harts), sources=sources)
        function, self._context = self.answer
        self._answer = ctypes.CFUNCTYPE(*DIRECT_FUNCTION)(function)

    def access(self, hart, is_write, value=0):
        data = ctypes.c_uint64(value)
        assert self._answer(self._context, STRIDE * hart, 4, is_write, ctypes.addressof(data))
        return data.value


def test_nothing_is_lost_or_claimed_twice_when_threads_raise_and_claim(monkeypatch):
    core = Released(monkeypatch, sources=130, harts=2)
    numbers = {0: (1, 31, 63), 1: (64, 65, 130)}  # of each thread that raises
    edges = {1, 63, 64, 130}
    for number in (*numbers[0], *numbers[1]):
        core.set_priority(number, 1 + number % 7)
    for number in edges:
        core.set_edge(number)
    for hart in range(2):
        for word in range(5):
            core.set_enabled(hart, word, 2**32 - 1)
    raised, seen, claims, owners = Counter(), Counter(), Counter(), {}
    finished = threading.Event()

    def drive(mine):
        for _ in range(3000):
            for number in mine:
                raised[number] += 1  # before the edge that it counts
                core.drive(number, True)
                core.drive(number, False)

    def serve(hart):
        number = core.access(hart, False)
        if number:
            assert owners.setdefault(number, hart) == hart
            seen[number] = raised[number]
            claims[number] += 1
            assert number not in edges or claims[number] <= seen[number]
            del owners[number]
            core.access(hart, True, number)
        return number

    def serve_all(hart):
        while not finished.is_set():
            serve(hart)

    drivers = [threading.Thread(target=drive, args=(mine,)) for mine in numbers.values()]
    servers = [threading.Thread(target=serve_all, args=(hart,)) for hart in range(2)]
    for thread in (*servers, *drivers):
        thread.start()
    for thread in drivers:
        thread.join()
    finished.set()
    for thread in servers:
        thread.join()
    while serve(0):
        pass
    assert {number: seen[number] for number in edges} == {number: raised[number] for number in edges}
    assert core.bits()[:4] == [0, 0, 0, 0]
    assert [context.asserted for context in core._contexts] == [0, 0]
