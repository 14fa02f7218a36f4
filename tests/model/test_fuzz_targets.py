# SPDX-License-Identifier: Apache-2.0
"""The targets of ``scripts/fuzz-native``, without the fuzzer: with inputs that it found worth keeping."""

from pathlib import Path

import pytest
from fakes.native import needs_native
from fakes.nettwins import Play as CardPlay
from fakes.plictwins import Guest
from fakes.queuetwins import Play
from fakes.twins import STATUS, Access, Filled, Happening, Status
from fuzz import exits, frames, plic, queues, rings

from pyvmm.devices.net.pair import Pair
from pyvmm.devices.pliccore import PlicCore
from pyvmm.devices.virtio.split import SplitQueue
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.ring import NATIVE, PLAIN, Ring

pytestmark = needs_native

CORPUS = Path(__file__).parent.parent / "fuzz/corpus"
TARGETS = {"exits": exits, "frames": frames, "plic": plic, "queues": queues, "rings": rings}
INPUTS = sorted(CORPUS.glob("*/*"))
#: Accesses near those that the C answers: where, whether to all 32 bits, and whether it is a store.
LEFT_TO_PYTHON = [
    (STATUS + 0x60, False, False),
    (STATUS + 0x60, True, True),
    (STATUS + 0x62, False, False),
    (STATUS + 0x64, True, False),
    (STATUS + 0x64, False, True),
]


def of(target):
    return [path.read_bytes() for path in INPUTS if path.parent.name == target]


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.name[:8]}")
def test_twins_agree_on_inputs_that_were_kept(path):
    TARGETS[path.parent.name].check(path.read_bytes())


def test_inputs_have_everything_that_can_happen_between_two_exits():
    steps = [step for data in of("exits") for step in exits.steps(data)]
    assert {type(step) for step in steps} == {Access, Filled, Happening}
    happened = {f"_{step.name}" for step in steps if isinstance(step, Happening)}
    assert happened == {name for name in vars(Happening) if name[0] == "_" and name[1] != "_"}


def test_inputs_have_every_access_to_registers_that_are_answered_directly():
    register, acknowledge, found = STATUS + 0x60, STATUS + 0x64, set()
    for data in of("exits"):
        interrupted = False
        for step in exits.steps(data):
            if isinstance(step, Happening) and step.name == "interrupt":
                interrupted = True
            elif isinstance(step, Access) and register <= step.address < acknowledge + 4:
                found.add((step.address, step.length == 4, bool(step.is_write), interrupted))
    assert {
        *((register, True, False, interrupted) for interrupted in (False, True)),
        *((acknowledge, True, True, interrupted) for interrupted in (False, True)),
        *((address, width, write, True) for address, width, write in LEFT_TO_PYTHON),
    } <= found


def test_inputs_have_everything_that_can_happen_to_a_queue():
    conversations = [queues.conversation(data) for data in of("queues")]
    happened = {step.name for _, steps in conversations for step in steps}
    assert happened == {name for name, kind in vars(Play).items() if callable(kind)} - {
        "__init__", "seen", "close", "_let_go",
    }  # fmt: skip
    assert len({(queue.packed, queue.event_idx) for queue, _ in conversations}) == 4
    assert len({(queue.packed, queue.indirect) for queue, _ in conversations}) == 4


def test_inputs_have_everything_that_can_happen_to_a_plic():
    happened = {name for data in of("plic") for name, *_ in plic.conversation(data)[1]}
    assert happened == {name for name, kind in vars(Guest).items() if callable(kind)} - {
        "__init__", "play", "_enabled",
    }  # fmt: skip


def test_inputs_have_everything_that_can_happen_to_a_card():
    conversations = [frames.conversation(data) for data in of("frames")]
    happened = {step.name for _, steps, _ in conversations for step in steps}
    assert happened == {name for name, kind in vars(CardPlay).items() if callable(kind)} - {
        "__init__", "seen", "fresh", "_placed", "_add",
    }  # fmt: skip
    honest = {setup for setup, _, hostile in conversations if not hostile}
    assert {setup.packed for setup in honest} == {setup.mergeable for setup in honest} == {False, True}
    assert {setup.packed for setup, _, hostile in conversations if hostile} == {False, True}


def test_inputs_have_every_operation_on_rings():
    operations = [todo for data in of("rings") for todo in rings.operations(data)[1]]
    assert {f"{name}{bits}" for name, bits, *_ in operations} == set(Ring.__slots__) - {"backend", "safe"}


def test_twin_that_answers_a_load_wrongly_is_noticed(monkeypatch):
    answer = Vcpu.answer_mmio
    monkeypatch.setattr(Vcpu, "answer_mmio", lambda self, length, value: answer(self, length, value ^ 1))
    with pytest.raises(AssertionError, match=r"in C:.*\n.*in Python:"):
        for data in of("exits"):
            exits.check(data)


@pytest.mark.parametrize("handler", ["_read_status", "_write_ack"])
def test_twin_of_a_direct_answer_that_does_nothing_is_noticed(monkeypatch, handler):
    monkeypatch.setattr(Status, handler, lambda *_: 0)
    with pytest.raises(AssertionError, match=r"in C:.*\n.*in Python:"):
        for data in of("exits"):
            exits.check(data)


def test_queue_that_counts_wrongly_is_noticed(monkeypatch):
    pop = SplitQueue.pop
    monkeypatch.setattr(SplitQueue, "pop", lambda self: pop(self) and pop(self))
    with pytest.raises(AssertionError, match=r"in C:.*\n.*in Python:"):
        for data in of("queues"):
            queues.check(data)


def test_plic_that_forgets_edges_is_noticed(monkeypatch):
    complete = PlicCore.complete

    def forgetful(core, context, number):
        core._latched = 0
        complete(core, context, number)

    monkeypatch.setattr(PlicCore, "complete", forgetful)
    with pytest.raises(AssertionError, match=r"in C:.*\n.*in Python:"):
        for data in of("plic"):
            plic.check(data)


def test_pair_that_drops_frames_is_noticed(monkeypatch):
    monkeypatch.setattr(Pair, "_transmit", lambda self, chain: True)
    with pytest.raises(AssertionError, match=r"in C:.*\n.*in Python:"):
        for data in of("frames"):
            frames.check(data)


def test_operation_that_stores_nothing_is_noticed(monkeypatch):
    broken = Ring(PLAIN)
    broken.store_release16 = lambda address, value: 0
    monkeypatch.setattr(rings, "_backends", lambda: [broken, Ring(NATIVE)])
    with pytest.raises(AssertionError, match="native module"):
        for data in of("rings"):
            rings.check(data)
