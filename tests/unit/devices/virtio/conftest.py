# SPDX-License-Identifier: Apache-2.0
"""Memory with borders of every kind, and both sides of a queue in it."""

import pytest
from fakes.driver import FakeDriver
from fakes.native import BACKENDS
from fakes.queues import BASE, MIB, PAGE, ROM, SEAM

from pyvmm.memory import DEVICE, READ_ONLY, GuestMemory
from pyvmm.ring import Ring


@pytest.fixture
def memory():
    with GuestMemory() as memory:  # closing it fails when a view was left behind
        memory.add(BASE, MIB)
        memory.add(SEAM, MIB)
        memory.add(ROM, PAGE, kind=READ_ONLY)
        memory.add(ROM + PAGE, PAGE, kind=DEVICE)
        yield memory


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def packed(request):
    return request.param


@pytest.fixture(params=BACKENDS)
def backend(request):
    """What works the queue."""
    return request.param


@pytest.fixture
def connect(memory, packed, backend):
    """Makes both sides of a queue: (driver, queue)."""
    made = []

    def make(**options):
        driver = FakeDriver(memory, packed=packed, **options)
        made.append(driver.make_queue(Ring(backend)))
        return driver, made[-1]

    yield make
    for queue in made:
        queue.close()
