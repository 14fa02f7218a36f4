# SPDX-License-Identifier: Apache-2.0
"""All queues of a virtio device in the hands of a vhost-user back end, session by session.

Messages to the back end wait for its answers, which a device must not do: worker threads send them, one
``turn`` after the other in the order in which the device asked. A reset is over when the back end has given
its rings back. If it does not, it is ended: until then it could write to guest memory.
"""

from __future__ import annotations

import os
import select
import threading
from functools import partial

from pyvmm.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.vhost.user import VhostUser
    from pyvmm.devices.virtio.queue import QueueSetup
    from pyvmm.devices.virtio.session import ActiveQueue, Session
    from pyvmm.memory import GuestMemory


class _Ring:
    """What a worker has to know of a queue. The eventfds are duplicates: a reset closes the originals."""

    __slots__ = ("base", "call", "index", "kick", "setup", "started")

    def __init__(self, queue: ActiveQueue, setup: QueueSetup, base: int) -> None:
        kick, call = queue.offload()
        self.index = queue.index
        self.setup = setup
        self.base = base
        self.started = False
        self.kick = os.dup(kick)
        self.call = os.dup(call)

    def close(self) -> None:
        os.close(self.kick)
        os.close(self.call)


class RemoteRings:
    """See the module. ``end`` makes sure that the back end is no more; it is called on a worker's thread.

    The methods are called with the device's lock held.
    """

    def __init__(self, backend: VhostUser, end: Callable[[], None]) -> None:
        self._backend = backend
        self._end = end
        self._turn = threading.Condition(threading.Lock())
        self._given = self._served = 0  # turns
        # Rings that the back end was given, by index, and the memory they are in. Only touched in turn, or
        # while the machine is paused and no turns are taken.
        self._running: dict[int, _Ring] = {}
        self._memory: GuestMemory | None = None
        #: Why the back end is of no more use; empty while it is.
        self.lost = ""

    def start(self, session: Session) -> None:
        """Hand over every queue that the driver has set up."""
        if self.lost:
            session.fail(self.lost)
            return
        rings = [
            _Ring(queue, queue.setup, _base(queue))
            for queue in session.queues
            if queue.ring is not None and queue.setup is not None
        ]
        session.watch(self._backend.fd, partial(self._hung_up, session), select.EPOLLRDHUP)
        self._submit(session, partial(self._start, session.features, session.memory, rings))

    def stop_ring(self, session: Session, index: int) -> None:
        """Take one queue back. It is not handed over again before the next session."""
        self._submit(session, partial(self._stop, (index,)))

    def stop(self, session: Session) -> None:
        """Take all queues back."""
        self._submit(session, partial(self._stop, None))

    # On the loop's thread, with the device's lock

    def _hung_up(self, session: Session, _events: int) -> None:
        self.lost = self.lost or f"{self._backend.name} has ended."
        session.fail(self.lost)

    def _submit(self, session: Session, job: Callable[[], None]) -> None:
        turn = self._given
        self._given += 1
        session.submit(partial(self._in_turn, turn, job), partial(self._done, session))

    def _done(self, session: Session, reason: str) -> None:
        if reason:
            session.fail(reason)

    # On a worker's thread

    def _in_turn(self, turn: int, job: Callable[[], None]) -> str:
        """Run ``job`` after those asked for before; the reason when the back end is lost.

        No worker waits in vain: jobs are begun in the order in which they were submitted.
        """
        with self._turn:
            while self._served != turn:
                self._turn.wait()
        try:
            self._attempt(job)
        finally:
            with self._turn:
                self._served += 1
                self._turn.notify_all()
        return self.lost

    def _attempt(self, job: Callable[[], None]) -> None:
        try:
            job()
        except HostError as error:
            self.lost = self.lost or str(error)
            self._end()

    def _start(self, features: int, memory: GuestMemory, rings: list[_Ring]) -> None:
        self._memory = memory
        self._running.update((ring.index, ring) for ring in rings)
        if self.lost:
            return
        self._backend.set_features(features)
        self._backend.set_memory(memory)
        for ring in rings:
            self._start_ring(ring)

    def _start_ring(self, ring: _Ring) -> None:
        assert self._memory is not None
        self._backend.start_ring(ring.index, ring.setup, self._memory, ring.base, ring.kick, ring.call)
        ring.started = True

    def _stop(self, indices: tuple[int, ...] | None) -> None:
        stopping = [
            self._running.pop(index) for index in indices or sorted(self._running) if index in self._running
        ]
        for ring in stopping:
            ring.close()
        if self.lost:
            self._end()
            return
        for ring in stopping:
            if ring.started:
                self._backend.stop_ring(ring.index)

    # While the machine is paused, on its thread: no job is under way, and none will be

    def quiesce(self) -> None:
        """Take every ring back, and remember how far the back end came."""
        self._attempt(self._suspend)

    def go_on(self) -> None:
        """Hand the rings over again, and let the back end look for what came meanwhile."""
        self._attempt(self._go_on)

    def _suspend(self) -> None:
        for ring in () if self.lost else self._running.values():
            if ring.started:
                ring.base = self._backend.stop_ring(ring.index)
                ring.started = False

    def _go_on(self) -> None:
        for ring in () if self.lost else self._running.values():
            if not ring.started:
                self._start_ring(ring)
                os.eventfd_write(ring.kick, 1)


def _base(queue: ActiveQueue) -> int:
    """Where the back end begins, as SET_VRING_BASE has it."""
    return queue.ring.state()["available"] if queue.ring is not None else 0
