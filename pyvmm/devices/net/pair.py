# SPDX-License-Identifier: Apache-2.0
"""A receive and a transmit queue of virtio-net that pyvmm works itself (virtio 1.2, section 5.1.6).

Frames go from a port of the host straight into the driver's buffers, and back. A port is a tap's queue or
passt's socket; both speak in frames behind the 12-byte header.

What a hostile guest can do: give buffers without room, in pieces of a byte, or none; send frames that are too
short or too long, or from more pieces than the kernel takes. Each costs it the frame and is counted, and each
pass over the queues is bounded.
"""

from __future__ import annotations

import os
import struct
from collections import deque

from pyvmm.devices.net import bits as netbits
from pyvmm.devices.virtio.chain import gather, scatter, split, total

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from pyvmm.devices.base import Watch
    from pyvmm.devices.virtio.chain import Chain
    from pyvmm.devices.virtio.queue import Frames
    from pyvmm.devices.virtio.session import ActiveQueue, Session

    class Port(Protocol):
        """Where frames come from and go to. ``fd`` is readable and writable when it can."""

        fd: int
        #: What of the frame received last did not fit; valid until the next one.
        overflow: memoryview

        @property
        def spare(self) -> bytearray | None:
            """Where what does not fit goes; None unless ``fd`` takes and gives one frame a call."""

        @property
        def in_hand(self) -> bool:
            """Whether there may be more to receive although ``fd`` is not readable."""

        def receive(self, views: list[memoryview], room: int) -> int:
            """The size, with its header, of a frame that was put into ``views`` of ``room`` bytes.

            Raises BlockingIOError when there is none, and OSError when there will be none any more.
            """

        def send(self, views: Sequence[memoryview]) -> bool:
            """Send a frame. False: not now, but when ``fd`` is writable. Raises OSError: not this one.

            ConnectionError: nor any other.
            """

        def flush(self) -> bool:
            """Send what was left behind; whether all of it went. Raises ConnectionError."""


_IN, _OUT, _ERR, _HUP = 1, 4, 8, 16  # EPOLL bits
# After so much others have their turn, and the driver its interrupt: it then works on these frames while the
# next ones are received.
_FRAMES_PER_PASS, _BYTES_PER_PASS = 64, 1 << 16
# Where a pass took one frame, as with answers, the next ones are expected to. A look in vain for another is a
# system call for which the driver's interrupt waits; the loop looks anyway.
_ALONE_PASSES = 15
_MOST_VIEWS = 1023  # of IOV_MAX, 1024; one is the port's own
_SMALLEST_FRAME = netbits.HEADER_SIZE + netbits.ETHERNET_HEADER
_CLOSED = "the host's end was closed"
_NUM_BUFFERS = struct.Struct("<H")
# Why no more frames were moved in C; _native_frames.c has the same. Below zero: an errno.
_ENOUGH, _NOT_NOW, _NO_BUFFER, _OURS = range(4)


class Counters:
    """What became of frames that did not arrive. For the whole device, over all sessions."""

    __slots__ = ("lost", "malformed", "rx_dropped", "tx_dropped")

    def __init__(self) -> None:
        self.rx_dropped = 0  # the driver's buffers were too small, or the link down
        self.tx_dropped = 0  # the host refused the frame, or the link was down
        self.malformed = 0  # no frame, or no buffer for one
        self.lost = ""  # why the host's end is gone


class Pair:
    """See the module. For one session, with the device's lock held.

    ``on_lost`` is called when the host's end is gone.
    """

    def __init__(
        self,
        session: Session,
        port: Port,
        rx: ActiveQueue,
        tx: ActiveQueue,
        *,
        mergeable: bool,
        up: bool,
        counters: Counters,
        on_lost: Callable[[], None],
    ) -> None:
        self._session = session
        self._port = port
        self._rx = rx
        self._tx = tx
        self._mergeable = mergeable
        self._up = up
        self._counters = counters
        self._on_lost = on_lost
        self._watch: Watch | None = None
        self._events = _IN
        self._buffers: deque[tuple[Chain, int]] = deque()  # taken from the driver, in order, and their sizes
        self._room = 0  # of all of them
        self._views: list[memoryview] = []  # all of their pieces: every frame costs a look at each
        self._frame = 0  # size of the frame that is being received
        self._rest = port.overflow  # what of it is not in the buffers yet
        self._alone = 0  # in so many passes one frame is taken, without a look for another
        self._held: Chain | None = None  # taken from the driver, not sent yet
        self._full = False  # the port takes no frame until it is writable

    def start(self) -> None:
        """Begin to listen to the port, or go on after ``pause``."""
        if not self._counters.lost:
            self._events = _IN
            self._watch = self._session.watch(self._port.fd, self._ready, _IN)
            self._want(_OUT, self._full)
            self._session.kick(self._rx)
            self._session.kick(self._tx)

    def pause(self) -> None:
        """Leave the port alone. What was taken from the driver stays taken."""
        if self._watch is not None:
            self._session.unwatch(self._watch)
            self._watch = None
        self._drop_frame()

    def quiesce(self) -> None:
        """Nothing here runs but on the loop, which calls nobody while the machine is paused."""

    def go_on(self) -> None:
        """See ``quiesce``."""

    def kick(self, queue: ActiveQueue) -> None:
        """The driver put something into one of the queues."""
        if queue is self._rx:
            if queue.ring is not None:
                queue.ring.pause_notify()
            self._receive()
        elif not self._full or self._watch is None:
            self._send()

    def stop_queue(self, queue: ActiveQueue) -> None:
        """The driver resets this queue: forget its chains."""
        if queue is self._rx:
            self._drop_buffers()
        else:
            self._held, self._full = None, False

    def set_link(self, up: bool) -> None:
        """While the link is down frames of both directions are dropped."""
        self._up = up
        self._want(_IN, True)

    def stop(self) -> None:
        """The session is over."""
        self._drop_buffers()
        self._held, self._full = None, False

    def _drop_buffers(self) -> None:
        self._buffers.clear()
        self._views.clear()
        self._room = 0
        self._drop_frame()

    def _drop_frame(self) -> None:
        self._frame = 0
        self._rest = self._rest[:0]

    def _ready(self, events: int) -> None:
        if events & _OUT:
            self._send()
        if events & _IN:
            self._receive()
        elif events & (_ERR | _HUP):
            self._lose(_CLOSED)

    def _want(self, event: int, wanted: bool) -> None:
        """Listen to the port for ``event``, or not."""
        events = self._events | event if wanted else self._events & ~event
        if events != self._events and self._watch is not None:
            self._events = events
            self._watch.modify(events)

    def _lose(self, reason: str) -> None:
        self.pause()
        self._counters.lost = reason
        self._up = False
        self._on_lost()

    def _in_c(self, queue: ActiveQueue) -> tuple[Frames, bytearray] | None:
        """What moves the frames of ``queue`` in C, and the port's spare room for it."""
        ring, spare = queue.ring, self._port.spare
        if ring is None or ring.frames is None or spare is None:
            return None
        return ring.frames, spare

    # Receiving

    def _receive(self) -> None:
        """Take frames until there is none, or no buffer for it, or others must have their turn."""
        count, most, left = 0, 1 if self._alone else _FRAMES_PER_PASS, _BYTES_PER_PASS
        while count < most and left > 0:
            moved, size, more = self._receive_some(most - count, left)
            count += moved
            left -= size
            if not more:
                if count == 1 and not self._frame:
                    self._alone = _ALONE_PASSES
                return
        if self._alone and left > 0:
            self._alone -= 1
        if self._port.in_hand:
            self._session.kick(self._rx)
        else:
            self._want(_IN, True)

    def _receive_some(self, most: int, most_bytes: int) -> tuple[int, int, bool]:
        """Take up to ``most`` frames, or one: how many, their bytes, and whether there may be more.

        In C, as long as nothing that was taken here has to go first.
        """
        in_c = self._in_c(self._rx)
        if in_c is None or self._frame or self._buffers or not self._up or self._watch is None:
            return self._receive_one()
        frames, spare = in_c
        ending, count, dropped, size, self._frame, rest = frames.receive(
            self._port.fd, spare, self._mergeable, most, most_bytes
        )
        self._rest = memoryview(spare)[:rest]
        self._counters.rx_dropped += dropped
        if count > dropped:
            self._rx.gave_back()
        if ending == _OURS:
            one, its_size, more = self._receive_one()
            return count + one, size + its_size, more
        if ending == _NOT_NOW:
            self._want(_IN, True)
        elif ending == _NO_BUFFER:
            self._starve()
        elif ending != _ENOUGH:
            self._lose(os.strerror(-ending))
        return count, size, ending == _ENOUGH

    def _receive_one(self) -> tuple[int, int, bool]:
        """Like ``_receive_some``."""
        if not (self._frame or self._fetch()):
            return 0, 0, False
        size = self._frame
        return (1, size, True) if self._place() else (0, 0, False)

    def _fetch(self) -> bool:
        """Read the next frame into the buffers there are; whether there was one."""
        if self._watch is None:
            return False
        views: list[memoryview] = []
        room = 0
        if self._up:
            # Buffers that are left over would keep the next frames from C, which looks for room by itself.
            ahead = self._mergeable and self._in_c(self._rx) is None
            if not self._provide(netbits.LARGEST_FRAME if ahead else 1) and not self._room:
                return self._starve()
            views, room = self._views, self._room
            if len(views) > _MOST_VIEWS:
                views = views[:_MOST_VIEWS]
                room = total(views)
        try:
            self._frame = self._port.receive(views, room)
        except BlockingIOError:
            self._want(_IN, True)
            return False
        except OSError as error:
            self._lose(error.strerror or _CLOSED)
            return False
        self._rest = self._port.overflow
        return True

    def _place(self) -> bool:
        """Give the frame to the driver. False when that has to wait for more buffers."""
        frame, rest = self._frame, self._rest
        if not self._up or frame < _SMALLEST_FRAME or (frame > self._room and not self._mergeable):
            self._counters.rx_dropped += 1
        elif self._provide(frame):
            if rest:
                scatter(split(self._views, frame - len(rest))[1], rest)
            self._deliver(frame)
        elif len(self._views) >= _MOST_VIEWS:  # in pieces so small that it will never fit
            self._counters.rx_dropped += 1
        else:
            return self._starve()
        self._drop_frame()
        return True

    def _provide(self, size: int) -> bool:
        """Take buffers from the driver until they hold ``size`` bytes; whether they do.

        No more than fit into _MOST_VIEWS pieces, and what the last of them has beyond that.
        """
        if self._room >= size:
            return True
        pop, buffers, views, room = self._rx.pop, self._buffers, self._views, self._room
        for _ in range(self._rx.size):
            if len(views) >= _MOST_VIEWS or room >= size or (chain := pop()) is None:
                break
            parts = chain.writable
            own = len(parts[0]) if len(parts) == 1 else total(parts)
            if own and len(parts) <= _MOST_VIEWS:
                buffers.append((chain, own))
                views += parts
                room += own
            else:
                self._counters.malformed += 1
                self._rx.complete(chain, 0)
        self._room = room
        return room >= size

    def _starve(self) -> bool:
        """There are too few buffers: listen to the driver instead of the port. Always False."""
        if self._rx.wait_for_chains():  # it just added some, and will not kick for them
            self._session.kick(self._rx)
        else:
            self._want(_IN, False)
        return False

    def _deliver(self, frame: int) -> None:
        """Give back the buffers that ``frame`` bytes fill, and say in the header how many they are."""
        buffers, views = self._buffers, self._views
        one_view_each = len(views) == len(buffers)
        used: list[tuple[Chain, int]] = []
        left = frame
        while left > 0:
            buffer = buffers.popleft()
            used.append(buffer)
            left -= buffer[1]
        self._room += left - frame
        if left:  # of the last one there is some room left, which goes with it
            used[-1] = (buffer[0], buffer[1] + left)
        count = len(used) if self._mergeable else 1
        if len(views[0]) >= netbits.HEADER_SIZE:
            _NUM_BUFFERS.pack_into(views[0], netbits.NUM_BUFFERS_AT, count)
        else:
            scatter(split(views, netbits.NUM_BUFFERS_AT)[1], _NUM_BUFFERS.pack(count))
        del views[: len(used) if one_view_each else sum(len(chain.writable) for chain, _ in used)]
        self._rx.complete_together(used)

    # Sending

    def _send(self) -> None:
        """Send what the driver has queued, until the port takes no more."""
        held, self._held, self._full = self._held, None, False
        if held is not None and not self._transmit(held):
            return
        for chain in self._tx.chains(None if self._in_c(self._tx) is None else self._send_some):
            if not self._transmit(chain):
                return
        if self._full:
            return
        try:
            self._want(_OUT, not self._port.flush())
        except OSError as error:
            self._lose(error.strerror or _CLOSED)

    def _send_some(self, most: int) -> int | None:
        """Send up to ``most`` frames in C: see ``ActiveQueue.chains``."""
        in_c = self._in_c(self._tx)
        if in_c is None or not self._up:
            return 0
        ending, count, dropped = in_c[0].send(self._port.fd, most)
        self._counters.tx_dropped += dropped
        if count:
            self._tx.gave_back()
        if ending == _NOT_NOW:
            self._wait_for_room()
            return None
        if ending < 0:
            self._lose(os.strerror(-ending))
        return count

    def _wait_for_room(self) -> None:
        self._full = True
        self._want(_OUT, True)

    def _transmit(self, chain: Chain) -> bool:
        """Send one frame. False when it has to wait."""
        views: Sequence[memoryview] = chain.readable
        size = total(chain.readable)
        if not _SMALLEST_FRAME <= size <= netbits.LARGEST_FRAME:
            self._counters.malformed += 1
        elif not self._up:
            self._counters.tx_dropped += 1
        else:
            if len(views) > _MOST_VIEWS:
                views = [memoryview(gather(chain.readable))]
            try:
                if not self._port.send(views):
                    self._held = chain
                    self._wait_for_room()
                    return False
            except ConnectionError as error:
                self._lose(error.strerror or _CLOSED)
            except OSError:  # the tap is down, or the frame's header makes no sense
                self._counters.tx_dropped += 1
        self._tx.complete(chain, 0)
        return True
