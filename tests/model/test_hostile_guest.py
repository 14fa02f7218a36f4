# SPDX-License-Identifier: Apache-2.0
"""A guest that does anything to any device: nothing raises, hangs, leaks, or reaches what is not the guest's.

A case is one action on a device: a register access, a request, a chain of lies, a reset, a BAR moved, time or
work passing at the host's end. An example is a machine and so many of them, all drawn from one seed. After
each action every lock is free; after an example every device comes up again, what nobody attacked still
works, and memory, files, descriptors, watches and timers are as they should be.

A failure says its seed: ``HOSTILE_SEED=0x1234 pytest tests/model/test_hostile_guest.py -k 'blk-pci-packed'``.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import tempfile
import tracemalloc

import pytest
from fakes.attack import Attacker
from fakes.hostile import Machine
from fakes.targets import TARGETS
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pyvmm.devices import KINDS

ACTIONS = 300  # of one example
EXAMPLES = 40
CASES = 100_000
PATIENCE = 60  # seconds for an example that takes a fiftieth of one

#: What is attacked together: each device alone, and a bus of them.
MACHINES = {name: (name,) for name in TARGETS} | {"edu": ("rng",), "bus": ("blk", "rng", "net")}


def combinations():
    for name, targets in MACHINES.items():
        for transport in ("mmio", "pci"):
            for layout in ("split", "packed"):
                packable = all(TARGETS[target].packed for target in targets)
                if (layout == "split" or packable) and (transport == "pci" or name not in ("edu", "bus")):
                    yield f"{name}-{transport}-{layout}"


COMBINATIONS = list(combinations())
done: dict[str, int] = dict.fromkeys(COMBINATIONS, 0)


def attack(combination: str, seed: int) -> None:
    """One example. An exception gets a note that says how to have it again."""
    name, transport, layout = combination.rsplit("-", 2)
    rng = random.Random(seed)
    step: int | str = "set-up"
    with tempfile.TemporaryDirectory(prefix="pyvmm-") as folder, patience():
        try:
            machine = Machine(
                [TARGETS[target](folder) for target in MACHINES[name]],
                pci=transport == "pci",
                packed=layout == "packed",
                edu=name in ("edu", "bus"),
                msi=rng.random() < 0.8,
                event_idx=rng.random() < 0.5,
            )
            try:
                attacker = Attacker(machine, rng)
                for number in range(ACTIONS):
                    step = number
                    attacker.step()
                    done[combination] += 1
                step = "the end"
                machine.finish()
            finally:
                machine.close()
        except BaseException as error:
            error.add_note(f"At {step} of HOSTILE_SEED={seed:#x} with -k {combination}")
            raise


class patience:
    """What takes longer hangs."""

    def __enter__(self):
        self._before = signal.signal(signal.SIGALRM, self._hangs)
        signal.alarm(PATIENCE)

    def __exit__(self, *exc):
        signal.alarm(0)
        signal.signal(signal.SIGALRM, self._before)

    @staticmethod
    def _hangs(*_):
        raise TimeoutError("it hangs")


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_every_kind_of_device_is_attacked():
    assert set(KINDS) <= set(MACHINES)


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_devices_survive_any_guest(combination):
    before = descriptors()
    given_seed = os.environ.get("HOSTILE_SEED")
    if given_seed:
        attack(combination, int(given_seed, 0))
        return

    # Seeds do not get simpler: the step at which one fails is in the note.
    @settings(max_examples=EXAMPLES, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
    @given(st.integers(0, 2**64 - 1))
    def attacks(seed):
        attack(combination, seed)

    attacks()
    assert descriptors() == before, "descriptors leaked"


def test_at_least_a_hundred_thousand_cases_were_tried():
    if not all(done.values()):
        pytest.skip("only counted when all devices were attacked")
    print(f"{sum(done.values())} hostile actions")
    assert sum(done.values()) >= CASES


@pytest.mark.parametrize("name", MACHINES)
def test_attacks_leave_no_memory_behind(name):
    combination = f"{name}-pci-split"
    for seed in range(3):  # imports, caches, and pools that fill once
        attack(combination, seed)
    gc.collect()
    tracemalloc.start()
    try:
        attack(combination, 0)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for seed in range(3):
            attack(combination, seed)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 32 << 10
