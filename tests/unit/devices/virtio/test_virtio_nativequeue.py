# SPDX-License-Identifier: Apache-2.0
"""Queues in C: what is theirs alone. The rest is in tests/model/test_queue_twins.py."""

import pytest
from fakes.driver import FakeDriver
from fakes.native import needs_native
from fakes.queues import BASE, MIB

from pyvmm.errors import HostError, QueueError
from pyvmm.memory import GuestMemory
from pyvmm.ring import NATIVE, Ring

pytestmark = needs_native


@pytest.fixture
def backend():
    return NATIVE


@pytest.mark.parametrize("packed", [False], indirect=True, ids=["split"])
def test_available_index_that_jumped_is_refused_each_time(connect):
    driver, queue = connect(size=4)
    driver.ring.set_index(100)
    for _ in range(3):
        with pytest.raises(QueueError, match="the available index jumped from 0 to 100"):
            queue.pop()
    with pytest.raises(QueueError, match="the available index jumped from 0 to 100"):
        queue.resume_notify()


def test_function_that_outlived_its_queue_touches_nothing(connect):
    driver, queue = connect()
    driver.add_chain([b"request"])
    functions = [queue.pop, queue.should_interrupt, queue.pause_notify, queue.resume_notify]
    queue.close()
    for function in functions:
        with pytest.raises(ValueError, match="the virtqueue is closed"):
            function()


def test_memory_stays_as_long_as_the_queue(packed):
    memory = GuestMemory()
    memory.add(BASE, 2 * MIB)
    memory.add(BASE + 4 * MIB, MIB)
    queue = FakeDriver(memory, packed=packed, base=BASE + 4 * MIB).make_queue(Ring(NATIVE))
    with pytest.raises(HostError, match="is still in use"):
        memory.close()
    queue.close()
    memory.close()


@pytest.mark.parametrize("written", [-1, 2**32, 2**64])
def test_more_bytes_than_a_used_element_can_tell_are_refused(connect, written):
    driver, queue = connect()
    driver.add_chain((), [8])
    chain = queue.pop()
    with pytest.raises(OverflowError):
        queue.complete(chain, written)
    assert driver.collect() == []
    chain.close()
