# SPDX-License-Identifier: Apache-2.0
"""Console output: a device appends to a buffer and goes on; a writer thread does the blocking writes.

The newest output is kept, and observers see output as it comes.

A buffer that is full makes the vCPU wait, outside every device lock, until the reader has caught up: nothing
is lost and a flood cannot exhaust the host. A device that works on the event loop, which must not wait, asks
to be called instead (``when_room``).
"""

from __future__ import annotations

import os
import select
import threading

from pyvmm.threads import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_HIGH_WATER = 1 << 20
_LINE_LIMIT = 4096
# After a write, gather output for this long (seconds): a byte at a time would wake the reader, and fight the
# vCPU for the interpreter, once a byte. Nobody sees so short a delay on a screen. Where much is coming, the
# screen scrolls anyway, and nobody sees a longer one.
_GATHER, _GATHER_MUCH = 0.004, 0.032
_MUCH = 1024
# The newest output is kept for whoever comes to look.
_KEPT = 256 << 10
_TRIMMED_BY = 64 << 10  # at least, so that a flood of single bytes does not trim at every one


class ConsoleWriter:
    """Takes guest output from any thread and writes it to descriptors from its own.

    ``on_line`` sees every line as it is completed, on the thread that wrote it and with the writer's lock
    held, so that what a guest said is known before what it did next. ``on_error`` hears of an exception that
    nobody foresaw, which ends the writing.
    """

    def __init__(self, on_line: Callable[[bytes], None], on_error: Callable[[BaseException], None]) -> None:
        self._on_line = on_line
        self._on_error = on_error
        self._outputs: dict[int, Callable[[OSError], None]] = {}
        self._lock = threading.RLock()
        self._ready = threading.Condition(self._lock)
        self._idle = False  # the writer's thread waits to be told of output
        self._buffer = bytearray()
        self._line = bytearray()
        self._kept = bytearray()
        self._observers: list[Callable[[bytes], None]] = []
        self._wanting_room: list[Callable[[], None]] = []
        self._written = 0
        self._released = False
        self._abandoned = False
        self._closing = False
        self._hurry = threading.Event()  # gather no more: somebody waits for room, or for the end
        self._thread = start_thread(self._main, "console")

    @property
    def full(self) -> bool:
        """Whether more than the bound waits to be written."""
        return len(self._buffer) > _HIGH_WATER

    def add_output(self, fd: int, on_failed: Callable[[OSError], None]) -> None:
        """Write to ``fd`` too. ``on_failed`` is called once, on the writer's thread, when that fails."""
        with self._ready:
            self._outputs[fd] = on_failed

    def observe(self, callback: Callable[[bytes], None]) -> Callable[[], None]:
        """Call ``callback`` now with the newest output, which is kept, and then with all that follows.

        It is called on the thread that writes, with the writer's lock held: it must neither wait nor call
        back. Returns what ends it, which is idempotent and, like this, callable from any thread.
        """

        def forget() -> None:
            with self._ready:
                if callback in self._observers:
                    self._observers.remove(callback)

        with self._ready:
            callback(bytes(self._kept[-_KEPT:]))
            self._observers.append(callback)
        return forget

    def _show(self, data: bytes) -> None:
        self._kept += data
        if len(self._kept) > _KEPT + _TRIMMED_BY:
            del self._kept[:-_KEPT]
        for callback in self._observers:
            callback(data)

    def write(self, data: bytes) -> Callable[[], None] | None:
        """Take ``data``. When the buffer is full, return what the caller must run to wait for room."""
        with self._lock:  # the condition's own, without the detour through its methods
            if self._idle:
                self._idle = False
                self._ready.notify_all()
            self._buffer += data
            self._show(data)
            self._line += data
            if b"\n" in data or len(self._line) > 2 * _LINE_LIMIT:
                self._finish_lines()
            if len(self._buffer) <= _HIGH_WATER:
                return None
            self._hurry.set()
            return self._wait_for_room

    def _finish_lines(self) -> None:
        *lines, rest = bytes(self._line).split(b"\n")
        self._line = bytearray(rest[-_LINE_LIMIT:])
        for line in lines:
            self._on_line(line)

    def _wait_for_room(self) -> None:
        with self._ready:
            while self.full and not self._released:
                self._ready.wait()

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once there is room: at once, or later on the writer's thread.

        For those who must not wait. The caller may hold locks, so the callback may only schedule.
        """
        with self._ready:
            if self.full and not self._released:
                self._wanting_room.append(callback)
                return
        callback()

    def release(self) -> None:
        """Let every waiting vCPU go on; later output may exceed the buffer's bound. For stopping."""
        with self._ready:
            self._released = True
            self._ready.notify_all()
            called, self._wanting_room = self._wanting_room, []
        for callback in called:
            callback()

    def close(self, *, patience: float | None = None) -> bool:
        """Write out everything taken and end the thread; returns whether that was done.

        ``patience``: give up after so many seconds in which no reader took anything; None never does.
        """
        with self._ready:
            self._released = True
            self._closing = True
            self._hurry.set()
            self._ready.notify_all()
        written = -1
        while self._thread.is_alive() and written != self._written:
            written = self._written
            self._thread.join(patience)
        self._abandoned = True
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            while data := self._next():
                for fd in list(self._outputs):
                    self._write_all(fd, data)
                self._hurry.wait(_GATHER_MUCH if len(data) >= _MUCH else _GATHER)
        except BaseException as error:
            self._on_error(error)

    def _next(self) -> bytes:
        """The next piece to write; nothing when there will be none."""
        with self._ready:
            while not self._buffer and not self._closing:
                self._idle = True
                self._ready.wait()
            data, self._buffer = bytes(self._buffer), bytearray()
            if not self._closing:
                self._hurry.clear()
            self._ready.notify_all()
            called, self._wanting_room = self._wanting_room, []
        for callback in called:
            callback()
        return data

    def _write_all(self, fd: int, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view and not self._abandoned:
                try:
                    count = os.write(fd, view)
                except BlockingIOError:  # somebody else made the shared terminal non-blocking
                    _wait_writable(fd)
                    continue
                self._written += count
                view = view[count:]
        except OSError as error:
            self._outputs.pop(fd)(error)


def _wait_writable(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()
