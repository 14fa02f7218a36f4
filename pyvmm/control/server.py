# SPDX-License-Identifier: Apache-2.0
"""control.sock: requests from any number of clients, on a thread of its own.

The thread touches neither vCPUs nor devices and waits for nobody, so a guest that is paused, busy or hung
can still be controlled. A request that may take its time gets a short-lived thread; its connection's next
request begins when it has ended, so there is at most one such thread a connection. What a client does not
read is bounded: no more of its requests are looked at, its events are dropped and counted, and after a while
it is dropped itself.
"""

from __future__ import annotations

import os
import threading
from functools import partial

from pyvmm.control.consolehub import ConsoleHub
from pyvmm.control.runfolder import CONSOLE_SOCKET, CONTROL_SOCKET
from pyvmm.control.served import Served
from pyvmm.control.sockets import Listener, Peer
from pyvmm.errors import PyvmmError
from pyvmm.eventloop import EventLoop
from pyvmm.threads import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from pyvmm.control.protocol import Request
    from pyvmm.control.requests import Kind
    from pyvmm.control.runfolder import Instance
    from pyvmm.eventloop import Timer
    from pyvmm.machine import Machine

    Event = dict[str, object]

MOST_CLIENTS = 64
# Bytes that a client has not read: beyond, none of its requests is looked at and it loses events.
_UNREAD_LIMIT = 256 << 10
# Seconds after which a client that reads none of its answers is dropped.
_STALLED = 30.0
# Seconds in which clients hear of the end before they are dropped.
_FAREWELL = 2.0
_LOOK_AGAIN = 0.01  # seconds
# Requests of one client that are carried out before others have their turn.
_TURN = 32


class ControlServer:
    """Serves the sockets of ``instance`` for ``machine``; a context manager. ``name`` is the guest's.

    ``start`` and ``close`` are for the thread that made it. An exception that nobody foresaw goes to
    ``on_error``. Raises HostError.
    """

    def __init__(
        self, machine: Machine, instance: Instance, on_error: Callable[[BaseException], None]
    ) -> None:
        self._instance = instance
        self._on_error = on_error
        self._loop = EventLoop(self._failed)
        self._sessions: set[_Session] = set()
        self._drained = threading.Event()
        self._closed = False
        self.served = Served(machine, instance.name, self._happened)
        self._hub: ConsoleHub | None = None
        self._listener: Listener | None = None
        try:
            self._hub = ConsoleHub(
                self._loop, instance.path(CONSOLE_SOCKET), machine.observe_console, machine.send_input
            )
            # Last: once it is there, so is everything else.
            self._listener = Listener(self._loop, instance.path(CONTROL_SOCKET), self._connected)
        except BaseException:
            self._abandon()
            raise

    @property
    def name(self) -> str:
        """The guest's name."""
        return self._instance.name

    @property
    def folder(self) -> str:
        """Where the sockets are."""
        return self._instance.folder

    def start(self) -> None:
        """Begin to serve. When that fails, nothing is left but the name."""
        try:
            self._loop.start()
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        """Before its thread has begun."""
        self.served.close()
        self._drop()
        self._loop.stop()

    def __enter__(self) -> ControlServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the name back, let the clients hear of the end, and stop. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.served.close()
        self._instance.release()  # whoever sees the connection end can have the name
        self._loop.call_soon(self._finish)
        self._drained.wait()
        self._loop.stop()

    def _finish(self) -> None:
        if self._listener is not None and self._hub is not None:
            self._listener.close()
            self._hub.finish()
        for session in list(self._sessions):
            session.finish()
        self._loop.call_later(_FAREWELL, self._drop)
        self._look_whether_drained()

    def _look_whether_drained(self) -> None:
        """Until everybody has read what was sent to them."""
        if self._sessions or (self._hub is not None and self._hub.busy):
            self._loop.call_later(_LOOK_AGAIN, self._look_whether_drained)
        else:
            self._drop()

    def _drop(self) -> None:
        """Close everything at once. Idempotent."""
        if self._hub is not None:
            self._hub.close()
        if self._listener is not None:
            self._listener.close()
        for session in list(self._sessions):
            session.peer.close()
        self._drained.set()

    def _failed(self, error: BaseException) -> None:
        """The loop's thread ends with this, which nobody foresaw."""
        self._drop()
        self._on_error(error)

    def _connected(self, fd: int) -> None:
        from pyvmm.control import protocol

        if len(self._sessions) < MOST_CLIENTS:
            session = _Session(self._loop, fd, self.served, self._sessions.discard)
            self._sessions.add(session)
            session.greet()
            return
        try:
            os.write(fd, protocol.failure(None, "Too many clients are connected; close one of them."))
        except OSError:
            pass  # it has gone already
        os.close(fd)

    def _happened(self, event: Event) -> None:
        """On any thread."""
        self._loop.call_soon(partial(self._publish, event))

    def _publish(self, event: Event) -> None:
        for session in list(self._sessions):
            session.tell(event)


class _Session:
    """One client of control.sock. On the loop's thread, but for ``_carry_out``."""

    def __init__(self, loop: EventLoop, fd: int, served: Served, on_gone: Callable[[_Session], None]) -> None:
        # Here, not above: nobody may ever connect, and JSON takes long to import on a slow host.
        from pyvmm.control import protocol, requests

        self._protocol = protocol
        self._requests = requests
        self._loop = loop
        self._served = served
        self._forget = on_gone
        self._lines = protocol.Lines()
        self._busy = False
        self._ended = False
        self._listening = False
        self._more = False  # requests may wait, and nothing is read: they have their turn soon
        self._lost = 0
        self._stalled: Timer | None = None
        self.peer = Peer(loop, fd, on_data=self._received, on_gone=self._gone, on_sent=self._advance)

    def greet(self) -> None:
        """Say who is here. The client may have gone already."""
        self.peer.send(self._protocol.message(self._served.greeting(self._protocol.VERSION)))

    def tell(self, event: Event) -> None:
        """Pass an event on to a client that wants them and reads them."""
        if not self._listening or self.peer.closed:
            return
        if self.peer.unsent > _UNREAD_LIMIT:
            self._lost += 1
        else:
            self.peer.send(self._protocol.message(event))

    def finish(self) -> None:
        """Answer what is under way, send what is unsent, and close."""
        self._ended = True
        self._advance()

    def _gone(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
        if not self._busy:  # else it counts until its thread has ended
            self._forget(self)

    def _received(self, data: bytes) -> None:
        if data:
            self._lines.feed(data)
        elif not self._listening:
            self._ended = True
        self._advance()

    def _advance(self) -> None:
        """Go on with the next request, if the client has read the answers so far."""
        for _ in range(_TURN):
            if self.peer.closed or self._busy or self._is_stalled():
                break
            self._tell_losses()
            line = self._lines.take()
            if line == b"":
                if self._ended:
                    self.peer.finish()
                break
            self._take(line)
        else:
            if not self._more:
                self._more = True
                self._loop.call_soon(self._go_on)
        self.peer.read(not (self._busy or self._more or self._stalled or self._ended))

    def _go_on(self) -> None:
        self._more = False
        self._advance()

    def _is_stalled(self) -> bool:
        """Whether too much is unread; begins and ends the time that the client has to read it."""
        stalled = self.peer.unsent > _UNREAD_LIMIT
        if stalled and self._stalled is None:
            self._stalled = self._loop.call_later(_STALLED, self.peer.close)
        elif not stalled and self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        return stalled

    def _tell_losses(self) -> None:
        if self._lost:
            self.peer.send(self._protocol.message({"event": "lost", "count": self._lost}))
            self._lost = 0

    def _take(self, line: bytes | None) -> None:
        try:
            request = self._protocol.parse(line)
            kind = self._requests.kind_of(request)
            arguments = kind.arguments(request)
        except self._protocol.ProtocolError as error:
            self.peer.send(self._protocol.failure(error.id, str(error)))
            return
        if request.do == self._requests.EVENTS:
            self._listening = True
        work = partial(self._carry_out, kind, request, arguments)
        if kind.waits:
            self._begin(work, request)
        else:
            self.peer.send(work())

    def _begin(self, work: Callable[[], bytes], request: Request) -> None:
        """Do ``work`` on a thread."""
        try:
            start_thread(lambda: self._answer_from_thread(work), "request")
        except RuntimeError:
            sentence = "The host gives pyvmm no further thread for this."
            self.peer.send(self._protocol.failure(request.id, sentence))
            return
        self._busy = True

    def _answer_from_thread(self, work: Callable[[], bytes]) -> None:
        answer = work()
        self._loop.call_soon(lambda: self._answered(answer))

    def _answered(self, answer: bytes) -> None:
        self._busy = False
        if self.peer.closed:
            self._forget(self)
            return
        self.peer.send(answer)
        self._advance()

    def _carry_out(self, kind: Kind, request: Request, arguments: dict[str, object]) -> bytes:
        """The answer. Nothing that goes wrong here may hurt anybody but the client, who is told."""
        try:
            result = kind.does(self._served, **arguments)
            return self._protocol.success(request.id, result or {})
        except PyvmmError as error:
            return self._protocol.failure(request.id, str(error))
        except Exception as error:
            return self._protocol.failure(request.id, f"pyvmm failed at this: {error!r}")
