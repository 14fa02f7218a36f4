# SPDX-License-Identifier: Apache-2.0
"""console.sock: the guest's console for any number of clients, as raw bytes.

A client first gets the output that was kept, then what the guest prints. One that reads too slowly loses
output, and is told so where it is missing: it makes neither the guest nor another client wait. What clients
type goes to the guest in the order in which it came. While the guest has not taken a certain amount of it,
also from clients that have gone, no more is read: the rest stays with those who sent it.
"""

from __future__ import annotations

import os
import threading
from functools import partial

from pyvmm.control.sockets import Listener, Peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.eventloop import EventLoop

    #: Calls back with the output kept so far, at once, then with all that follows, from any thread and with
    #: a lock held; returns what ends that.
    Observe = Callable[[Callable[[bytes], None]], Callable[[], None]]
    #: Types bytes into the guest; calls back, on any thread, once it has taken them.
    SendInput = Callable[[bytes, Callable[[], None]], None]

MOST_CLIENTS = 16
# More than the console keeps, so that a client that reads gets all of that.
_PENDING_LIMIT = 512 << 10
# Bytes typed that the guest has not taken: beyond, nothing is read from any client.
_MOST_UNTAKEN = 64 << 10
_PIECE_COST = 512  # bytes that a piece of input takes beside its own


class ConsoleHub:
    """Serves console.sock on ``loop``. Its methods run on the loop's thread."""

    def __init__(self, loop: EventLoop, path: str, observe: Observe, send_input: SendInput) -> None:
        self._loop = loop
        self._observe = observe
        self._send_input = send_input
        self._clients: set[_Client] = set()
        self._untaken = 0
        self._listener = Listener(loop, path, self._connected)

    @property
    def busy(self) -> bool:
        """Whether clients are connected."""
        return bool(self._clients)

    def finish(self) -> None:
        """Take no more clients, and close each once it got what was printed."""
        self._listener.close()
        for client in list(self._clients):
            client.finish()

    def close(self) -> None:
        """Close everything at once. Idempotent."""
        self._listener.close()
        for client in list(self._clients):
            client.peer.close()

    def _connected(self, fd: int) -> None:
        if len(self._clients) < MOST_CLIENTS:
            client = _Client(self._loop, fd, self._observe, self._typed, self._clients.discard)
            self._clients.add(client)
            client.peer.read(self._has_room)
            return
        try:
            os.write(fd, b"pyvmm: too many clients watch this console; end one of them\r\n")
        except OSError:
            pass  # it has gone already
        os.close(fd)

    @property
    def _has_room(self) -> bool:
        return self._untaken < _MOST_UNTAKEN

    def _typed(self, data: bytes) -> None:
        cost = len(data) + _PIECE_COST
        self._count(cost)
        self._send_input(data, lambda: self._loop.call_soon(partial(self._count, -cost)))

    def _count(self, cost: int) -> None:
        had_room = self._has_room
        self._untaken += cost
        if self._has_room != had_room:
            for client in self._clients:
                client.peer.read(self._has_room)


class _Client:
    """One client: between what the guest prints, on any thread, and what the loop may send."""

    def __init__(
        self,
        loop: EventLoop,
        fd: int,
        observe: Observe,
        on_typed: Callable[[bytes], None],
        on_gone: Callable[[_Client], None],
    ) -> None:
        self._loop = loop
        self._on_typed = on_typed
        self._forget = on_gone
        self._lock = threading.Lock()
        self._pending = bytearray()
        self._lost = 0
        self._awake = False
        self._finishing = False
        self.peer = Peer(loop, fd, on_data=self._typed, on_gone=self._gone, on_sent=self._pump)
        self._stop_observing = observe(self._printed)

    def finish(self) -> None:
        """Send what is left, then close."""
        self._stop_observing()
        self._finishing = True
        self._pump()

    def _gone(self) -> None:
        self._stop_observing()
        self._forget(self)

    def _printed(self, data: bytes) -> None:
        """On any thread, which may hold locks and must not wait."""
        with self._lock:
            if self._lost or len(self._pending) + len(data) > _PENDING_LIMIT:
                self._lost += len(data)
            else:
                self._pending += data
            if self._awake:
                return
            self._awake = True
        self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Hand on what waits, once the client has taken what it was given before."""
        if self.peer.unsent or self.peer.closed:
            return
        with self._lock:
            data, self._pending = bytes(self._pending), bytearray()
            lost, self._lost = self._lost, 0
            self._awake = False
        if lost:
            data += b"\r\n[pyvmm: %d bytes are missing here: this client reads too slowly]\r\n" % lost
        self.peer.send(data)
        if self._finishing:
            self.peer.finish()

    def _typed(self, data: bytes) -> None:
        if data:
            self._on_typed(data)
