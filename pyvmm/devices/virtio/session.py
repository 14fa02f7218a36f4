# SPDX-License-Identifier: Apache-2.0
"""One life of a virtio device: from DRIVER_OK to the next reset.

Everything a device does on behalf of the driver goes through its session, so that a reset ends all of it:
callbacks that come late are dropped, and host I/O in flight is waited for before the reset is over.

A device's code runs in two places: register handlers on a vCPU's thread, and with them queues that are worked
at once (``VirtioDevice.at_once``); everything else on the loop's thread, through ``Session.run``. That takes
the device's lock, looks whether the session is still alive, turns a broken ring into DEVICE_NEEDS_RESET, and
sends the interrupts that completed chains call for.
"""

from __future__ import annotations

import os
import threading

from pyvmm.errors import GuestAccessError
from pyvmm.lean import deque, partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeVar

    from pyvmm.devices.base import Timer, Watch
    from pyvmm.devices.virtio.chain import Chain
    from pyvmm.devices.virtio.device import Services
    from pyvmm.devices.virtio.pacing import LateInterrupts, Pace
    from pyvmm.devices.virtio.queue import QueueSetup, Virtqueue
    from pyvmm.memory import GuestMemory

    T = TypeVar("T")


# A chain can have 4 GiB, of which the used ring's 32 bits cannot tell.
_MOST_WRITTEN = 0xFFFF_FFFF


class ActiveQueue:
    """A queue the driver has set up. ``ring`` is None while the driver has not, or has reset it.

    ``kick_fd`` is the eventfd the driver's notifications arrive on.
    """

    __slots__ = (
        "_chains", "_session", "has_turn", "has_used", "index", "kick_fd", "offloaded", "pace", "ring",
        "setup", "size",
    )  # fmt: skip

    def __init__(self, session: Session, index: int, kick_fd: int) -> None:
        self._session = session
        self._chains: set[Chain] = set()
        self.index = index
        self.kick_fd = kick_fd
        self.size = 0
        self.ring: Virtqueue | None = None
        #: Where the driver put it; what a kernel half has to know. Set with ``ring``.
        self.setup: QueueSetup | None = None
        #: A kernel half works this queue; pyvmm does not look at it.
        self.offloaded = False
        #: A kick of our own is on its way.
        self.has_turn = False
        #: Chains were given back in this callback.
        self.has_used = False
        #: Of a queue whose interrupts may come late.
        self.pace: Pace | None = None

    @property
    def in_flight(self) -> int:
        """Chains taken and not completed."""
        return len(self._chains)

    def pop(self) -> Chain | None:
        """The next chain, or None. Raises QueueError, which the session turns into DEVICE_NEEDS_RESET."""
        if self.ring is None:
            return None
        chain = self.ring.pop()
        if chain is not None:
            self._chains.add(chain)
        return chain

    def chains(self, work: Callable[[int], int | None] | None = None) -> Iterator[Chain]:
        """Every chain there is, without further kicks for them; at most a queue-full.

        What is left then comes with a kick of our own, after the other devices had their turn. Afterwards
        kicks come again.

        ``work`` may take chains without us before each one: it is called with how many there may be, and
        returns how many it took, or None when no more can be worked now.
        """
        ring = self.ring
        if ring is None:
            return
        if not ring.event_idx:
            ring.pause_notify()
        left = self.size
        while left > 0:
            if work is not None:
                taken = work(left)
                if taken is None:
                    return
                left -= taken
            chain = ring.pop() if left > 0 else None
            left -= 1
            if chain is not None:
                self._chains.add(chain)
                yield chain
                if self.ring is not ring:
                    return
            if not ring.resume_notify():
                return
        self._session.kick(self)

    def wait_for_chains(self) -> bool:
        """Ask for a kick when the driver adds a chain. True: there is one already, and no kick will come."""
        return self.ring is not None and self.ring.resume_notify()

    def complete(self, chain: Chain, written: int) -> None:
        """Give a chain back, ``written`` bytes of its writable part filled. The interrupt follows by itself.

        A chain from before the queue was reset is dropped.
        """
        ring = self.ring
        if ring is not None and chain in self._chains:
            self._chains.remove(chain)
            ring.complete(chain, written if written < _MOST_WRITTEN else _MOST_WRITTEN)
            self.gave_back()

    def complete_together(self, completions: Sequence[tuple[Chain, int]]) -> None:
        """Like ``complete`` for several chains, which the driver sees all at once."""
        mine = [
            (chain, min(written, _MOST_WRITTEN)) for chain, written in completions if chain in self._chains
        ]
        if mine and self.ring is not None:
            self._chains.difference_update(chain for chain, _ in mine)
            self.ring.complete_all(mine)
            self.gave_back()

    def gave_back(self) -> None:
        """Chains were given back: the interrupt follows."""
        if not self.has_used:
            self._session.used(self)

    def forget_chains(self) -> None:
        """The queue was reset: nothing taken from it will be given back."""
        self._chains.clear()

    def offload(self) -> tuple[int, int]:
        """Leave this queue to a kernel half: the eventfds for the driver's kicks and for interrupts."""
        self.offloaded = True
        return self.kick_fd, self._session.call_fd(self.index)


class Session:
    """See the module. Made by the transport's core.

    ``features`` is what was negotiated, ``queues`` has one entry for every queue of the device, set up by
    the driver or not.
    """

    def __init__(
        self,
        services: Services,
        lock: threading.Lock,
        memory: GuestMemory,
        features: int,
        *,
        interrupt: Callable[[int], None],
        call_fd: Callable[[int], int],
        fail: Callable[[str], None],
    ) -> None:
        self._services = services
        self._lock = lock
        self._interrupt = interrupt
        self._fail = fail
        self._used: list[ActiveQueue] = []  # those with chains given back in this callback
        self._late: LateInterrupts | None = None
        # Kept here and not in the loop: it holds views of guest memory, and goes with the session.
        self._posted: deque[Callable[[], None]] = deque()
        self._watches: list[Watch] = []
        self._jobs: set[object] = set()  # submitted and not finished, one mark each
        self._jobs_done = threading.Condition(threading.Lock())
        self.call_fd = call_fd
        self.memory = memory
        self.features = features
        self.alive = True
        #: The device was activated with it, and has to hear of its end.
        self.handed_over = False
        self.queues: tuple[ActiveQueue, ...] = ()
        self.on_kick: Callable[[ActiveQueue], None] = _ignore_kick

    # For devices. Lock held, but for ``post``.

    def post(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` on the loop's thread, inside the session. Callable from any thread."""
        if not self.alive:
            return
        self._posted.append(callback)
        self._services.loop.call_soon(partial(self.run, self._run_posted))

    def _run_posted(self) -> None:
        self._posted.popleft()()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Run ``callback`` on the loop's thread after ``seconds``, inside the session."""
        return self._services.loop.call_later(seconds, partial(self.run, callback))

    def watch(self, fd: int, callback: Callable[[int], None], events: int = 1) -> Watch:
        """Call ``callback(events)`` on the loop's thread, inside the session, while ``fd`` is ready.

        It ends with the session; before closing the descriptor earlier, ``unwatch`` it. Once the session has
        ended nothing is watched: nobody would read, and the loop would spin.
        """
        watch = self._services.loop.watch(fd, partial(self.run, callback), events)
        if self.alive:
            self._watches.append(watch)
        else:
            watch.close()
        return watch

    def unwatch(self, watch: Watch) -> None:
        """End a watch before the session ends. Idempotent."""
        watch.close()
        if watch in self._watches:
            self._watches.remove(watch)

    def submit(self, job: Callable[[], T], done: Callable[[T], None]) -> None:
        """Run ``job`` on a worker, then ``done`` with its result inside the session.

        ``job`` touches neither device nor queue, only the views of its chain. It does not raise: host errors
        are part of its result. A reset waits for it, and then drops ``done``.
        """
        mark = object()
        with self._jobs_done:
            self._jobs.add(mark)
        self._services.workers.submit(partial(self._work, mark, job, done))

    def kick(self, queue: ActiveQueue) -> None:
        """Act once as if the driver had kicked ``queue``, after everybody else's turn."""
        if not queue.has_turn:
            queue.has_turn = True
            self.post(partial(self._kicked, queue))

    def fail(self, reason: str) -> None:
        """The driver broke the rules: nothing more is done for it until it resets the device."""
        if self.alive:
            self.alive = False
            self._unwatch_all()  # nobody would read what they wait for: the loop would spin
            if self._late is not None:
                self._late.catch_up()
                self._late.stop()
            self._fail(reason)

    # For queues and the transport's core.

    def run(self, callback: Callable[..., None], *arguments: object) -> None:
        """Call into the device on the loop's thread. See the module."""
        with self._lock:
            if not self.alive:
                self._posted.clear()  # what came while the session ended
                return
            self.enter(callback, *arguments)

    def enter(self, callback: Callable[..., None], *arguments: object) -> None:
        """Call into the device with the lock held.

        What the driver broke, or the host refuses, ends the session. Chains given back meanwhile interrupt.
        """
        try:
            callback(*arguments)
        except GuestAccessError as error:
            self.fail(str(error))
        except OSError as error:
            self.fail(f"the host refused what the device needs: {error.strerror}")
        if self._used:
            self._interrupt_driver()

    def _interrupt_driver(self) -> None:
        used, self._used = self._used, []
        for queue in used:
            queue.has_used = False
            ring, late = queue.ring, self._late
            if ring is None or (late is not None and self.alive and late.put_off(queue)):
                continue
            if ring.should_interrupt():
                self._interrupt(queue.index)

    def interrupt_late(self, queue: ActiveQueue) -> None:
        """The driver of ``queue`` hardly waits for its buffers: put interrupts for it off. See ``pacing``."""
        from pyvmm.devices.virtio.pacing import LateInterrupts, Pace

        if self._late is None:
            self._late = LateInterrupts(self.call_later, self._interrupt)
        queue.pace = Pace()

    def used(self, queue: ActiveQueue) -> None:
        """Chains of ``queue`` were given back: look at the end of this callback whether to interrupt."""
        queue.has_used = True
        self._used.append(queue)

    def begin(self, queue: ActiveQueue) -> None:
        """Listen to the driver's kicks of ``queue``."""
        if not queue.offloaded:
            self.watch(queue.kick_fd, partial(self._kick_event, queue))

    def end(self) -> None:
        """No callback gets in any more. With the lock held."""
        self.alive = False
        for queue in self.queues:
            queue.forget_chains()
        self._posted.clear()
        if self._late is not None:
            self._late.stop()
        self._unwatch_all()

    def _unwatch_all(self) -> None:
        for watch in self._watches:
            watch.close()
        self._watches = []

    def drain(self) -> None:
        """Wait for every job submitted so far: no worker touches guest memory for one. Without the lock.

        Not for later ones: when one queue is reset the others go on.
        """
        with self._jobs_done:
            waiting = set(self._jobs)
            while not waiting.isdisjoint(self._jobs):
                self._jobs_done.wait()
        if not self.alive:
            self._posted.clear()  # what a job posted while the session ended

    def _kick_event(self, queue: ActiveQueue, _events: int) -> None:
        try:
            os.eventfd_read(queue.kick_fd)
        except BlockingIOError:
            return
        self.on_kick(queue)

    def _kicked(self, queue: ActiveQueue) -> None:
        queue.has_turn = False
        self.on_kick(queue)

    def _work(self, mark: object, job: Callable[[], T], done: Callable[[T], None]) -> None:
        try:
            self.post(partial(done, job()))
        finally:
            with self._jobs_done:
                self._jobs.remove(mark)
                self._jobs_done.notify_all()


def _ignore_kick(_queue: ActiveQueue) -> None:
    """Nobody works the queues."""
