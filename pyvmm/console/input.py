# SPDX-License-Identifier: Apache-2.0
"""Console input: what the device does not take yet stays here, and little more is read meanwhile."""

from __future__ import annotations

import os

from pyvmm.lean import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.eventloop import EventLoop, Watch

    #: A piece of input: bytes, or an action in their order (a BREAK) that says whether it could be done.
    Item = bytes | Callable[[], bool]

_READ_SIZE = 4096
# Read ahead of the guest this far, so that the escape keys work while a hung guest takes no input.
_READ_AHEAD = 64 << 10


class ConsoleInput:
    """Reads a descriptor on the event loop and offers what comes to a device, in order, losing nothing.

    ``fd`` is None when there is nothing to read, and all input is typed (``type``). ``consume(data) -> int``
    takes what fits and says how much; ``filter`` sees the raw bytes first (escape keys) and returns the items
    meant for the guest. Methods run on the loop thread unless they say otherwise.
    """

    def __init__(self, loop: EventLoop, fd: int | None, filter: Callable[[bytes], list[Item]]) -> None:
        self._loop = loop
        self._fd = fd
        self._filter = filter
        self._consume: Callable[[bytes], int] | None = None
        self._pending: deque[Item] = deque()
        self._watch: Watch | None = None
        self._always_ready = False
        self._reading = False
        self._eof = False

    def start(self) -> None:
        """Begin to read. From any thread."""
        self._loop.call_soon(self._read_on)

    def connect(self, consume: Callable[[bytes], int] | None) -> None:
        """Give input to ``consume`` from now on; None keeps it until there is one. From any thread."""
        self._consume = consume
        self._loop.call_soon(self.offer)

    def type(self, data: bytes, taken: Callable[[], None], *before: Item) -> None:
        """Offer ``before`` and ``data`` after the input so far; call ``taken`` once the device has all of it.

        From any thread; ``taken`` is called on the loop's.
        """

        def all_taken() -> bool:
            taken()
            return True

        self.insert(*before, data, all_taken)

    def insert(self, *items: Item) -> None:
        """Offer ``items`` after the input so far, with nothing between them. From any thread.

        An action is done again until it says it was done.
        """
        self._loop.call_soon(lambda: self._insert(*items))

    def _insert(self, *items: Item) -> None:
        self._pending.extend(items)
        self.offer()

    def _readable(self, _events: int) -> None:
        assert self._fd is not None
        try:
            data = os.read(self._fd, _READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._pending.extend(self._filter(data))
        else:
            self._eof = True
        self.offer()

    def offer(self) -> None:
        """Give the device what waits for it: it can take more."""
        consume = self._consume  # a reboot sets it from another thread
        while self._pending and consume is not None:
            rest = self._give(self._pending[0], consume)
            if rest is not None:
                self._pending[0] = rest
                break
            self._pending.popleft()
        self._read_on()

    def _give(self, item: Item, consume: Callable[[bytes], int]) -> Item | None:
        """What is left of ``item`` after the device took what it could."""
        if callable(item):
            return None if item() else item
        return item[consume(item) :] or None

    def _read_on(self) -> None:
        """Watch the descriptor while there is room, and not otherwise: a hang-up cannot be masked."""
        if self._fd is None:
            return
        waiting = sum(len(item) for item in self._pending if isinstance(item, bytes))
        room = not self._eof and waiting < _READ_AHEAD
        if self._always_ready:
            if room and not waiting:
                self._read_soon()
        elif room and self._watch is None:
            self._start_watching(self._fd)
        elif not room and self._watch is not None:
            self._watch.close()
            self._watch = None

    def _start_watching(self, fd: int) -> None:
        try:
            self._watch = self._loop.watch(fd, self._readable)
        except PermissionError:  # a regular file: epoll refuses it, and it is always ready
            self._always_ready = True
            self._read_soon()

    def _read_soon(self) -> None:
        if not self._reading:
            self._reading = True
            self._loop.call_soon(self._read_file)

    def _read_file(self) -> None:
        self._reading = False
        self._readable(0)
