# SPDX-License-Identifier: Apache-2.0
"""The ports of a virtio console: each a stream of bytes both ways between the guest and a host end.

A port takes no more from either side than the other side takes. Output stays in the transmit queue while the
host end is full or absent, input stays with the host while the driver has no buffers. What a hostile guest
can do: send without end (the host end's pace holds it back), offer empty buffers (they are given back), open
and close in any order.

Everything here runs with the device's lock held, inside the session. A port outlives the driver: ``detach``
ends what it has to do with one, ``attach`` begins again with the next.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from pyvmm.devices.base import Sink
    from pyvmm.devices.virtio.chain import Chain
    from pyvmm.devices.virtio.session import ActiveQueue, Session

    class Screen(Sink, Protocol):
        """Where the machine's console output goes."""

        def when_room(self, callback: Callable[[], None]) -> None:
            """Call ``callback`` once more can be taken; it only schedules."""


_PIECE = 64 << 10  # output is copied to the screen in pieces of so many bytes


def _nobody_listens() -> None:
    """No device has the port."""


def next_chain(queue: ActiveQueue) -> Chain | None:
    """The next chain, or None, and then a kick comes with the next one."""
    chain = queue.pop()
    if chain is None and queue.wait_for_chains():
        chain = queue.pop()
    return chain


class Output:
    """Works a transmit queue: hands its bytes to ``send`` in order, and stops where that takes none.

    ``send(views)`` returns how many bytes it took. After 0, ``taken`` or ``pump`` go on.
    """

    __slots__ = ("_chain", "_queue", "_rest", "_send", "_session")

    def __init__(self, session: Session, queue: ActiveQueue, send: Callable[[list[memoryview]], int]) -> None:
        self._session = session
        self._queue = queue
        self._send = send
        self._chain: Chain | None = None
        self._rest: list[memoryview] = []  # what is still to be sent of ``_chain``

    def pump(self) -> bool:
        """Send what can be sent; whether that was everything. A bounded part at a time."""
        queue = self._queue
        ring = queue.ring
        if ring is None:
            return True
        if not ring.event_idx:
            ring.pause_notify()
        for _ in range(queue.size):
            chain = self._chain
            if chain is None:
                chain = queue.pop()
                if chain is None:
                    if ring.resume_notify():
                        continue
                    return True
                self._chain, self._rest = chain, chain.readable
            if self._rest:
                count = self._send(self._rest)
                if not count:
                    return False
                self.taken(count)
            if not self._rest:
                self._chain = None
                queue.complete(chain, 0)
                if not ring.resume_notify():
                    return True
        self._session.kick(queue)
        return False

    def taken(self, count: int) -> None:
        """The host end took ``count`` more bytes."""
        rest = self._rest
        if len(rest) == 1 and len(rest[0]) == count:
            self._rest = []
        else:
            from pyvmm.devices.virtio.chain import split

            self._rest = split(rest, count)[1]

    def drain(self) -> list[memoryview]:
        """All that is in the queue now, for good: none of it is given back."""
        views = self._rest
        for _ in range(self._queue.size):
            if not self._take():
                break
            views = views + self._rest
        self.forget()
        return views

    def discard(self) -> None:
        """Give back everything that is in the queue now, unsent."""
        for _ in range(self._queue.size):
            chain, self._chain, self._rest = self._chain, None, []
            if chain is not None:
                self._queue.complete(chain, 0)
            if not self._take():
                return

    def forget(self) -> None:
        """The queue is gone, and its chains."""
        self._chain, self._rest = None, []

    def _take(self) -> bool:
        self._chain = next_chain(self._queue)
        if self._chain is None:
            return False
        self._rest = self._chain.readable
        return True


class Port:
    """What the device knows of any port. ``open`` says whether there is somebody at the host end.

    A subclass overrides ``send``, and what else it needs. ``name`` is what the guest finds it by.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.open = False
        self.guest_open = False
        self._session: Session | None = None
        self._input: ActiveQueue | None = None
        self._output: Output | None = None
        self._on_change = _nobody_listens

    def attach(
        self, session: Session, rx: ActiveQueue, tx: ActiveQueue, on_change: Callable[[], None]
    ) -> None:
        """A driver works the port from now on. ``on_change`` hears when ``open`` changes."""
        self._session, self._input = session, rx
        self._output = Output(session, tx, self.send)
        self._on_change = on_change

    def finish(self) -> None:
        """The driver is about to go: what it sent goes out now or never."""
        self.work_output()

    def detach(self) -> None:
        """The driver is gone. The host end stays."""
        self._session = self._input = self._output = None
        self._on_change = _nobody_listens
        self.guest_open = False

    def forget(self, queue: ActiveQueue) -> None:
        """The driver reset one of the port's queues."""
        if self._output is not None and queue is not self._input:
            self._output.forget()

    def send(self, views: list[memoryview]) -> int:
        """Take bytes the guest sent; returns how many. After 0, call ``work_output`` when more can be."""
        raise NotImplementedError

    def work_output(self) -> None:
        """There may be something to send, and room for it."""
        if self._output is not None:
            self._output.pump()

    def work_input(self) -> None:
        """The driver may have added buffers."""

    def guest_opened(self, is_open: bool) -> None:
        """The guest opened or closed its end."""
        self.guest_open = is_open

    def announced(self) -> None:
        """The guest was told whether the port is open."""

    def close(self) -> None:
        """Give back what the host gave."""

    def deliver(self, data: bytes) -> int:
        """Put ``data`` into the driver's buffers; returns how much found room.

        After less than all, ``work_input`` is called when there may be more.
        """
        queue = self._input
        if queue is None or queue.ring is None:
            return 0
        from pyvmm.devices.virtio.chain import scatter

        done, view = 0, memoryview(data)
        for _ in range(queue.size):
            if done == len(data):
                queue.ring.pause_notify()  # until they run out, the driver may add buffers silently
                return done
            chain = next_chain(queue)
            if chain is None:
                return done
            count = scatter(chain.writable, view[done:])
            queue.complete(chain, count)
            done += count
        if self._session is not None and done < len(data):
            self._session.kick(queue)
        return done


class ScreenPort(Port):
    """The machine's console: output to a screen that may fill up, input from whoever calls ``receive``.

    ``on_room`` is called when input that was refused fits. It must only schedule.

    Input waits for the guest's first output. Linux offers buffers before it has made a terminal of the port,
    and throws away what comes into them until then.
    """

    def __init__(self, screen: Screen, on_room: Callable[[], None] | None) -> None:
        super().__init__()
        self.open = True
        self.on_room = on_room
        self.refused = False
        self.heard = False  # the guest has put something out since its driver came
        self._screen = screen
        self._full = False

    def attach(
        self, session: Session, rx: ActiveQueue, tx: ActiveQueue, on_change: Callable[[], None]
    ) -> None:
        """See Port."""
        super().attach(session, rx, tx, on_change)
        self._full = False

    def detach(self) -> None:
        """See Port."""
        super().detach()
        self.heard = False

    def send(self, views: list[memoryview]) -> int:
        """See Port."""
        session = self._session
        if self._full or session is None:
            return 0
        data = bytes(views[0][:_PIECE])
        if not self.heard:
            self.heard = True
            self.work_input()
        if self._screen.write(data) is not None:
            self._full = True
            self._screen.when_room(lambda: session.post(self._room))
        return len(data)

    def _room(self) -> None:
        self._full = False
        self.work_output()

    def work_input(self) -> None:
        """See Port."""
        if self.heard and self.refused and self.on_room is not None:
            self.refused = False
            self.on_room()

    def receive(self, data: bytes) -> int:
        """How many bytes of ``data`` the driver had room for. On the loop's thread, without the lock."""
        self.refused = True  # before the look at the session: a driver that comes meanwhile asks again
        session = self._session
        taken = [0]
        if session is not None:
            session.run(self._receive, data, taken)
        return taken[0]

    def _receive(self, data: bytes, taken: list[int]) -> None:
        taken[0] = self.deliver(data) if self.heard else 0
        self.refused = taken[0] < len(data)
