# SPDX-License-Identifier: Apache-2.0
"""The SBI calls that KVM leaves to user space (RISC-V SBI specification 3.0).

KVM handles BASE, TIME, IPI, RFENCE, HSM, PMU, STA and FWFT itself and turns SRST into a system event.
Forwarded are the debug console (chapter 12), system suspend (chapter 13), the legacy console (chapter 5, by
kernels built with it), and the experimental and vendor spaces, of which pyvmm implements nothing:
NOT_SUPPORTED, and the guest goes on.
"""

from __future__ import annotations

import threading

from pyvmm.errors import GuestAccessError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Memory(Protocol):
        """What the debug console needs of guest memory."""

        def read(self, gpa: int, n: int) -> bytes: ...
        def write(self, gpa: int, data: bytes) -> None: ...

    #: Takes output; may return what to run for waiting until there is room again.
    Output = Callable[[bytes], Callable[[], None] | None]
    #: Gives up to that many bytes of input, at once.
    Input = Callable[[int], bytes]


SUCCESS = 0
ERR_NOT_SUPPORTED = -2
ERR_INVALID_PARAM = -3

EXT_LEGACY_PUTCHAR = 0x1
EXT_LEGACY_GETCHAR = 0x2
EXT_BASE = 0x10
EXT_DBCN = 0x4442434E
EXT_SUSP = 0x53555350

_BASE_PROBE = 3
_DBCN_WRITE, _DBCN_READ, _DBCN_WRITE_BYTE = 0, 1, 2
_DBCN_NAMES = ("console_write", "console_read", "console_write_byte")
# One call moves at most this much; the specification lets the guest loop for the rest.
_DBCN_MAX = 64 << 10
_INPUT_SIZE = 4096


class Sbi:
    """Answers forwarded calls. Called on vCPU threads, several at once; holds no lock of its own."""

    def __init__(self, memory: Memory, output: Output, input: Input, suspend: Callable[[], None]) -> None:
        """``suspend`` is called on the hart's thread, which it keeps from going on; it does not wait."""
        self._memory = memory
        self._output = output
        self._input = input
        self._suspend = suspend

    def call(self, extension: int, function: int, args: tuple[int, ...]) -> tuple[int, int]:
        """The call's (error, value). Never raises for anything a guest can pass."""
        if extension == EXT_DBCN:
            return self._debug_console(function, args)
        if extension == EXT_SUSP and function == 0:
            # KVM has checked the arguments and queued the reset to the resume address already.
            self._suspend()
            return SUCCESS, 0
        if extension == EXT_LEGACY_PUTCHAR:
            self._emit(bytes((args[0] & 0xFF,)))
            return SUCCESS, args[1]  # legacy calls keep a1
        if extension == EXT_LEGACY_GETCHAR:
            data = self._input(1)
            return (data[0] if data else -1), args[1]
        if extension == EXT_BASE and function == _BASE_PROBE:
            return SUCCESS, 0  # KVM forwards probes of experimental and vendor extensions only
        return ERR_NOT_SUPPORTED, 0

    def _debug_console(self, function: int, args: tuple[int, ...]) -> tuple[int, int]:
        if function == _DBCN_WRITE_BYTE:
            self._emit(bytes((args[0] & 0xFF,)))
            return SUCCESS, 0
        if function not in (_DBCN_WRITE, _DBCN_READ):
            return ERR_NOT_SUPPORTED, 0
        count, low, high = args[0], args[1], args[2]
        if high:
            return ERR_INVALID_PARAM, 0
        try:
            if function == _DBCN_WRITE:
                return SUCCESS, self._write(low, min(count, _DBCN_MAX))
            return SUCCESS, self._read(low, min(count, _DBCN_MAX))
        except GuestAccessError:
            return ERR_INVALID_PARAM, 0

    def _write(self, gpa: int, count: int) -> int:
        if count:
            self._emit(self._memory.read(gpa, count))
        return count

    def _read(self, gpa: int, count: int) -> int:
        # Probe the buffer before input is taken: what is taken must arrive.
        self._memory.read(gpa, count)
        data = self._input(count)
        self._memory.write(gpa, data)
        return len(data)

    def _emit(self, data: bytes) -> None:
        wait = self._output(data)
        if wait is not None:
            wait()


def call_name(extension: int, function: int) -> str:
    """``DBCN.console_write`` and the like, for the trace."""
    if extension == EXT_DBCN and function < len(_DBCN_NAMES):
        return f"DBCN.{_DBCN_NAMES[function]}"
    if extension == EXT_SUSP and function == 0:
        return "SUSP.system_suspend"
    if extension == EXT_BASE and function == _BASE_PROBE:
        return "BASE.probe_extension"
    return f"0x{extension:x}.{function}"


class SbiInput:
    """Console input that waits for the guest to poll for it (DBCN console_read).

    ``on_room`` is called, with no lock held, when the guest took something.
    """

    def __init__(self, on_room: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._data = b""
        self._on_room = on_room

    def receive(self, data: bytes) -> int:
        """Take what fits; returns how many bytes that was."""
        with self._lock:
            taken = data[: _INPUT_SIZE - len(self._data)]
            self._data += taken
            return len(taken)

    def take(self, count: int) -> bytes:
        """Up to ``count`` bytes for the guest."""
        with self._lock:
            data, self._data = self._data[:count], self._data[count:]
        if data:
            self._on_room()
        return data
