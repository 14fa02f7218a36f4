# SPDX-License-Identifier: Apache-2.0
"""Unix sockets on an event loop: listening to a bounded number of clients, none of which is ever waited for.

Everything here runs on the loop's thread, except what says otherwise.
"""

from __future__ import annotations

import os
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT

from pyvmm.errors import HostError
from pyvmm.unixlistener import RETRY, UnixListener

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.eventloop import EventLoop, Watch

_READ_SIZE = 64 << 10


class Listener:
    """A socket at ``path``, mode 0600, that appears once it can be connected to.

    ``on_client`` gets each client's descriptor, which is non-blocking and its to close, unless it raises
    OSError: then the host had too little for this client. Raises HostError.
    """

    def __init__(self, loop: EventLoop, path: str, on_client: Callable[[int], None]) -> None:
        self._loop = loop
        self._on_client = on_client
        self._closed = False
        self._watch: Watch | None = None
        try:
            self._socket = _listen(path)
        except OSError as error:
            raise HostError(f"Cannot listen at {path}: {error.strerror}.", error.errno or 0) from error
        self._start()

    def close(self) -> None:
        """Take no more clients. The name stays where it is."""
        self._closed = True
        self._stop()
        self._socket.close()

    def _start(self) -> None:
        if not self._closed:
            self._watch = self._loop.watch(self._socket.fileno(), self._acceptable)

    def _stop(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _acceptable(self, _events: int) -> None:
        # One in a pass: what those do who were there before, who may have gone, comes between two newcomers.
        try:
            fd = self._socket.accept()
        except OSError:  # those who wait are there still when a descriptor is free
            self._stop()
            self._loop.call_later(RETRY, self._start)
            return
        if fd is None:
            return
        try:
            self._on_client(fd)
        except OSError:
            os.close(fd)


def _listen(path: str) -> UnixListener:
    listener = UnixListener(f"{path}.new")
    try:
        os.rename(f"{path}.new", path)
    except BaseException:
        listener.close()
        raise
    return listener


class Peer:
    """One client. ``on_data`` gets what it sends, and b"" when it will send no more; ``on_gone`` is called
    once, when nobody is left at the other end, or the connection was closed from here.

    What is sent to it is kept until it takes it: whoever sends looks at ``unsent`` to bound that.
    """

    def __init__(
        self,
        loop: EventLoop,
        fd: int,
        *,
        on_data: Callable[[bytes], None],
        on_gone: Callable[[], None],
        on_sent: Callable[[], None],
    ) -> None:
        self._fd = fd
        self._on_data = on_data
        self._on_gone = on_gone
        self._on_sent = on_sent
        self._out = bytearray()
        self._reading = True
        self._eof = False
        self._closing = False
        self._watch: Watch | None = loop.watch(fd, self._event)

    @property
    def unsent(self) -> int:
        """How many bytes it has not taken yet."""
        return len(self._out)

    @property
    def closed(self) -> bool:
        """Whether nothing goes in or out any more."""
        return self._watch is None

    def send(self, data: bytes) -> None:
        """Send it as far as it is taken at once, the rest later: ``on_sent`` is called as that goes."""
        if self._watch is not None and data:
            self._out += data
            self._flush()

    def read(self, wanted: bool) -> None:
        """Whether to read what it sends."""
        self._reading = wanted
        self._update()

    def finish(self) -> None:
        """Send nothing more, and close once all has been sent."""
        self._closing = True
        self.read(False)
        if not self._out:
            self.close()

    def close(self) -> None:
        """Close at once. Idempotent."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
            os.close(self._fd)
            self._out.clear()
            self._on_gone()

    def _update(self) -> None:
        if self._watch is not None:
            wants_input = self._reading and not self._eof
            self._watch.modify((EPOLLIN if wants_input else 0) | (EPOLLOUT if self._out else 0))

    def _event(self, events: int) -> None:
        if events & EPOLLOUT:
            self._flush()
            self._on_sent()
        if events & EPOLLIN and self._reading and not self._eof:
            self._read()
        elif events & (EPOLLERR | EPOLLHUP):
            self.close()

    def _read(self) -> None:
        if self._watch is None:
            return
        try:
            data = os.read(self._fd, _READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not data:
            self._eof = True
            self._update()
        self._on_data(data)

    def _flush(self) -> None:
        if self._watch is None:
            return
        try:
            while self._out:
                with memoryview(self._out)[:_READ_SIZE] as piece:
                    count = os.write(self._fd, piece)
                del self._out[:count]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._update()
        if self._closing and not self._out:
            self.close()
