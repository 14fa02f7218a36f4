# SPDX-License-Identifier: Apache-2.0
"""Ports of a virtio console whose host end is a stream of bytes both ways, with a peer that comes and goes.

A conversation ends when either side closes. When the host's end goes away the guest reads what came before,
and is then told that the port is closed. When the guest closes the port, what it wrote before still goes out,
and then the host reads the end of the stream; a new conversation needs a new connection. What the guest wrote
to a peer that has gone is lost, as on a socket. A port has only one "open", so a peer that shuts down its
sending half alone has hung up, too.

A guest that waits for a client must keep the port open meanwhile (poll tells, or reads that give nothing): if
it closes and opens it in a loop instead, it may close on a client that has just come.

Descriptors are watched through the session, so that nothing happens while there is no driver: a client that
connects meanwhile waits in the socket's backlog, one that was connected stays so.
"""

from __future__ import annotations

import os
import select

from pyvmm.devices.console.ports import Port
from pyvmm.devices.virtio.chain import total

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.base import Watch
    from pyvmm.devices.virtio.session import ActiveQueue, Session

_READ_SIZE = 16 << 10
_MAX_IOV = 1024  # IOV_MAX: what writev takes at most


class Interest:
    """A watch of a descriptor that comes and goes: level-triggered events would not let the loop sleep."""

    __slots__ = ("_session", "_watch")

    def __init__(self) -> None:
        self._session: Session | None = None
        self._watch: Watch | None = None

    def start(self, session: Session | None, fd: int, callback: Callable[[int], None], events: int) -> None:
        """Watch from now on, unless that is so, or there is no session."""
        if self._watch is None and session is not None:
            self._session = session
            self._watch = session.watch(fd, callback, events)

    def stop(self) -> None:
        """Do not, from now on. Idempotent, also when the session has ended."""
        if self._watch is not None and self._session is not None:
            self._session.unwatch(self._watch)
        self._session = self._watch = None


class StreamPort(Port):
    """A port whose host end is a stream: a readable and a writable descriptor, neither of which blocks."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._read_fd = self._write_fd = -1
        self._reading = Interest()
        self._writing = Interest()
        self._pending = b""  # read, and not yet delivered
        self._deaf = False  # the peer takes no more, but what it sent may still be there to be read
        self._closing = False  # the guest closed: what it sent still goes out

    def attach(
        self, session: Session, rx: ActiveQueue, tx: ActiveQueue, on_change: Callable[[], None]
    ) -> None:
        """See Port."""
        super().attach(session, rx, tx, on_change)
        self.work_input()

    def detach(self) -> None:
        """See Port."""
        self._reading.stop()
        self._writing.stop()
        super().detach()
        if self._closing:
            self._hang_up()  # what was still to go out went with the driver

    def forget(self, queue: ActiveQueue) -> None:
        """See Port."""
        super().forget(queue)
        if self._closing and queue is not self._input and self._session is not None:
            self._session.post(self.work_output)  # which hangs up: what was still to go out is gone

    def connect(self, read_fd: int, write_fd: int) -> None:
        """A peer is there. The descriptors are the port's from now on, and must be two."""
        for fd in (read_fd, write_fd):
            os.set_blocking(fd, False)
        self._read_fd, self._write_fd = read_fd, write_fd
        self.open = True
        self._on_change()
        self.work_input()
        self.work_output()

    def guest_opened(self, is_open: bool) -> None:
        """See Port."""
        closed = self.guest_open and not is_open
        super().guest_opened(is_open)
        if closed and self.open:
            self._closing = True
            self._pending = b""
            self._watch_input()
            self.work_output()
        else:
            self.work_input()

    # From the peer to the guest

    def work_input(self) -> None:
        """See Port."""
        if self._pending and self.guest_open:
            self._pending = self._pending[self.deliver(self._pending) :]
        self._watch_input()

    def _watch_input(self) -> None:
        """Listen to the peer only when what it sent before has gone."""
        if self.open and not self._pending and not self._closing:
            self._reading.start(self._session, self._read_fd, self._readable, select.EPOLLIN)
        else:
            self._reading.stop()

    def _readable(self, _events: int) -> None:
        try:
            self._pending = os.read(self._read_fd, _READ_SIZE)
        except BlockingIOError:
            return
        except OSError:  # reset by the peer
            self._pending = b""
        if self._pending:
            self.work_input()
        else:
            self.work_output()  # a peer that only stopped sending may still read
            self._hang_up()

    # From the guest to the peer

    def work_output(self) -> None:
        """See Port."""
        if self._output is not None and self._output.pump() and self._closing:
            self._hang_up()

    def send(self, views: list[memoryview]) -> int:
        """See Port."""
        if self._deaf:
            return total(views)
        if not self.open:
            return 0
        try:
            return os.writev(self._write_fd, views[:_MAX_IOV])
        except BlockingIOError:
            self._writing.start(self._session, self._write_fd, self._writable, select.EPOLLOUT)
            return 0
        except OSError:
            self._deaf = True
            return total(views)

    def _writable(self, _events: int) -> None:
        self._writing.stop()
        self.work_output()

    # The end of a conversation

    def _hang_up(self) -> None:
        """Close our end, and tell the guest. What it sent and nobody took is lost."""
        if not self.open:
            return
        self._close_stream()
        if self._output is not None:
            self._output.discard()
        self._on_change()

    def _close_stream(self) -> None:
        self._reading.stop()
        self._writing.stop()
        for fd in (self._read_fd, self._write_fd):
            if fd >= 0:
                os.close(fd)
        self._read_fd = self._write_fd = -1
        self._pending = b""
        self.open = self._deaf = self._closing = False

    def close(self) -> None:
        """See Port."""
        self._close_stream()
