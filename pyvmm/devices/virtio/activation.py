# SPDX-License-Identifier: Apache-2.0
"""What DRIVER_OK begins: a session, its queues and their rings, and who interrupts for them.

Imported then, on a vCPU's thread: a start does without all of this. Everything here is called with the
device's lock held.
"""

from __future__ import annotations

import os

from pyvmm.devices.virtio import bits
from pyvmm.devices.virtio.queue import QueueSetup, make_queue
from pyvmm.devices.virtio.session import ActiveQueue, Session
from pyvmm.lean import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.devices.virtio.core import VirtioCore


def begin(core: VirtioCore, positions: Sequence[dict[str, int]] | None = None) -> None:
    """Begin a session. ``positions``: where each queue stands, which begins anew otherwise."""
    session = Session(
        core.services,
        core.lock,
        core.memory,
        core.driver_features,
        interrupt=core.interrupts.queue_interrupt,
        call_fd=partial(_call_fd, core),
        fail=core.fail,
    )
    core.session = session
    session.on_kick = core.kicked
    session.queues = tuple(
        ActiveQueue(session, index, doorbell.fd) for index, doorbell in enumerate(core.doorbells)
    )
    for queue in session.queues:
        if queue.index in core.device.at_once and bits.has(session.features, bits.F_EVENT_IDX):
            session.interrupt_late(queue)
        if core.registers[queue.index].enabled:
            session.enter(make_ring, core, queue)
            if positions is not None and queue.ring is not None:
                queue.ring.load_state(positions[queue.index])
    if session.alive:
        session.handed_over = True
        session.enter(core.device.activate, session)
    if session.alive:
        for queue in session.queues:
            session.begin(queue)


def make_ring(core: VirtioCore, queue: ActiveQueue) -> None:
    """Put the ring of ``queue`` where the driver wants it. Inside the session."""
    queue.setup = setup = _setup(core, queue.index)
    queue.size = setup.size
    queue.ring = make_queue(core.memory, core.ring, setup)


def _setup(core: VirtioCore, index: int) -> QueueSetup:
    """Where the driver put queue ``index``, and how it is to be worked."""
    queue = core.registers[index]
    features = core.driver_features
    return QueueSetup(
        queue.size,
        queue.desc,
        queue.driver,
        queue.device,
        event_idx=bits.has(features, bits.F_EVENT_IDX),
        indirect=bits.has(features, bits.F_INDIRECT_DESC),
        packed=bits.has(features, bits.F_RING_PACKED),
    )


def _call_fd(core: VirtioCore, index: int) -> int:
    """An eventfd that interrupts for an offloaded queue: the transport's, or one that we listen to."""
    line = core.interrupts.queue_line(index)
    if line is not None:
        return line
    if index in core.calls:  # offloaded again, after a reset of the queue
        return core.calls[index]
    session = core.session
    assert session is not None
    fd = core.calls[index] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def on_call(_events: int) -> None:
        try:
            os.eventfd_read(fd)
        except BlockingIOError:
            return
        core.interrupts.queue_interrupt(index)

    session.watch(fd, on_call)
    return fd
