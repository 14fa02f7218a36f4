# SPDX-License-Identifier: Apache-2.0
"""Between the guest's console device and the host's descriptors.

Output: a device appends to a buffer and goes on; a writer thread does the blocking writes. A buffer that
is full makes the vCPU wait, outside every device lock, until the reader has caught up: nothing is lost
and a flood cannot exhaust the host. Input: what the device does not take yet stays here, and the
descriptor is not read further until it does.
"""

from __future__ import annotations

import os
import select
import threading

from pyvmm.threads import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.eventloop import EventLoop, Watch

_HIGH_WATER = 1 << 20
_READ_SIZE = 4096
_LINE_LIMIT = 4096
# After a write, gather output for this long (seconds): a byte at a time would wake the reader, and fight the
# vCPU for the interpreter, once a byte. Nobody sees so short a delay on a screen.
_GATHER = 0.004
# Read ahead of the guest this far, so that the escape keys work while a hung guest takes no input.
_READ_AHEAD = 64 << 10

#: Linux prints this after the panic's message, once it has given up.
_PANIC_END = b"---[ end Kernel panic"
_PANIC_START = b"Kernel panic - not syncing"


class PanicWatch:
    """Recognises a Linux panic in console output.

    ``seen`` turns true with the panic's own line (a guest with ``panic=N`` goes on to reboot), ``ended`` with
    the line that Linux prints when it stops for good.
    """

    __slots__ = ("ended", "message", "seen")

    def __init__(self) -> None:
        self.message = ""
        self.seen = False
        self.ended = False

    def feed(self, line: bytes) -> None:
        """Look at one line of output."""
        start = line.find(_PANIC_START)
        if start < 0:
            return
        self.seen = True
        self.message = line[start:].rstrip(b"\r\n").removesuffix(b" ]---").decode("utf-8", "replace")
        self.ended = _PANIC_END in line


class ConsoleWriter:
    """Takes guest output from any thread and writes it to descriptors from its own.

    ``on_line`` sees every line as it is completed, on the thread that wrote it
    and with the writer's lock held, so that what a guest said is known before what it did next.
    """

    def __init__(
        self,
        on_line: Callable[[bytes], None],
    ) -> None:
        self._outputs: dict[int, Callable[[OSError], None]] = {}
        self._on_line = on_line
        self._ready = threading.Condition()
        self._idle = False  # the writer's thread waits to be told of output
        self._buffer = bytearray()
        self._line = bytearray()
        self._released = False
        self._closing = threading.Event()
        self._abandoned = False
        self._thread = start_thread(self._run, "console")

    def add_output(self, fd: int, on_failed: Callable[[OSError], None]) -> None:
        """Write to ``fd`` too. ``on_failed`` is called once, on the writer's thread, when that fails."""
        with self._ready:
            self._outputs[fd] = on_failed

    def write(self, data: bytes) -> Callable[[], None] | None:
        """Take ``data``. When the buffer is full, return what the caller must run to wait for room."""
        with self._ready:
            if self._idle:
                self._idle = False
                self._ready.notify_all()
            self._buffer += data
            self._line += data
            if b"\n" in data or len(self._line) > _LINE_LIMIT:
                self._finish_lines()
            return self._wait_for_room if len(self._buffer) > _HIGH_WATER else None

    def _finish_lines(self) -> None:
        *lines, rest = bytes(self._line).split(b"\n")
        self._line = bytearray(rest[-_LINE_LIMIT:])
        for line in lines:
            self._on_line(line)

    def _wait_for_room(self) -> None:
        with self._ready:
            while len(self._buffer) > _HIGH_WATER and not self._released:
                self._ready.wait()

    def release(self) -> None:
        """Let every waiting vCPU go on; later output may exceed the buffer's bound. For stopping."""
        with self._ready:
            self._released = True
            self._ready.notify_all()

    def close(self, *, flush: bool = True) -> None:
        """End the thread. With ``flush``, first write out everything taken."""
        with self._ready:
            self._released = True
            self._closing.set()
            self._abandoned = not flush
            self._ready.notify_all()
        if flush:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._ready:
                while not self._buffer and not self._closing.is_set():
                    self._idle = True
                    self._ready.wait()
                data, self._buffer = bytes(self._buffer), bytearray()
                self._ready.notify_all()
            if not data or self._abandoned:
                return
            for fd in list(self._outputs):
                self._write_all(fd, data)
            self._closing.wait(_GATHER)

    def _write_all(self, fd: int, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view and not self._abandoned:
                try:
                    view = view[os.write(fd, view) :]
                except BlockingIOError:  # somebody else made the shared terminal non-blocking
                    select.select([], [fd], [])
        except OSError as error:
            self._outputs.pop(fd)(error)


class ConsoleInput:
    """Reads a descriptor on the event loop and offers the bytes to a device, losing none.

    ``consume(data) -> int`` takes what fits and says how much; ``filter`` sees the raw bytes first
    (escape keys) and returns those meant for the guest. Methods run on the loop thread, or before it starts.
    """

    def __init__(self, loop: EventLoop, fd: int, filter: Callable[[bytes], bytes]) -> None:
        self._loop = loop
        self._fd = fd
        self._filter = filter
        self._consume: Callable[[bytes], int] | None = None
        self._pending = b""
        self._watch: Watch | None = None
        self._always_ready = False
        self._eof = False

    def start(self) -> None:
        """Begin to read. A regular file, which epoll refuses, is read whenever the guest has room."""
        try:
            self._watch = self._loop.watch(self._fd, self._readable)
        except PermissionError:
            self._always_ready = True
            self._loop.call_soon(self._read)

    def connect(self, consume: Callable[[bytes], int] | None) -> None:
        """Give input to ``consume`` from now on; None keeps it until there is one. From any thread."""
        self._consume = consume
        self._loop.call_soon(self.offer)

    def _readable(self, _events: int) -> None:
        self._read()

    def _read(self) -> None:
        if self._eof or len(self._pending) >= _READ_AHEAD:
            return
        try:
            data = os.read(self._fd, _READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._eof = True
            self.close()
            return
        self._pending += self._filter(data)
        self.offer()

    def offer(self) -> None:
        """Give the device what waits for it: it can take more."""
        if self._pending and self._consume is not None:
            taken = self._consume(self._pending)
            self._pending = self._pending[taken:]
        if self._watch is not None:
            self._watch.modify(select.EPOLLIN if len(self._pending) < _READ_AHEAD else 0)
        elif self._always_ready and not self._pending and not self._eof:
            self._loop.call_soon(self._read)

    def close(self) -> None:
        """Stop reading."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
