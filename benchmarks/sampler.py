# SPDX-License-Identifier: Apache-2.0
"""Where the threads of a Python program are, looked at from another process: for the RISC-V host.

The program is neither changed nor stopped, and its samples hold nothing of the sampler's own work. A sampler
inside would need the GIL: it would see the program only where that lets go of it. The interpreter says at its
start where its parts are ("debug offsets"), for this purpose; they are read in one system call, so that who
holds the GIL and what that thread does are of the same moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import multiprocessing
import multiprocessing.connection
import os
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PERIOD = 0.015  # seconds, on average
PYTHON, GUEST, CALL, GIL_WAIT, LOCK_WAIT, IDLE = "python", "guest", "call", "GIL wait", "lock wait", "idle"
STATES = (PYTHON, GUEST, CALL, GIL_WAIT, LOCK_WAIT, IDLE)
_KVM_RUN = 0xAE80
# Numbers of system calls, of every architecture that is as young as RISC-V.
_IOCTL, _FUTEX = 29, 98
_WAITING = {22, 72, 73, 101, 115, 137, 260}  # epoll_pwait, pselect6, ppoll, sleeps, sigtimedwait, wait4
# What waits for work, not for a lock that somebody holds; and what calls KVM_RUN.
_AWAITS_WORK = {"threading.Condition.wait", "workers.WorkerThreads._work", "machine.Machine.wait"}
_ENTERS_GUEST = {"runner.VcpuThread._loop", "vcpu.Vcpu.run"}
_GIL_SIZE = 256  # at least: flags, then what threads wait on
_CHUNK = 16 << 10  # of a thread's stack of frames, as CPython allocates it
# struct _Py_DebugOffsets of CPython 3.13: the place of each in words of eight bytes.
_VERSION = (3, 13)
_WORDS = {
    "interpreters": 5, "threads": 9, "gil": 15, "locked": 17, "holder": 18,
    "thread": 19, "next": 21, "frame": 23, "native id": 25, "chunk": 26,
    "executable": 30, "filename": 35, "qualname": 37,
}  # fmt: skip
_OBJECT_TYPE, _ASCII_LENGTH, _ASCII_DATA = 8, 16, 40
_LONGEST_NAME = 1000

Samples = Counter[tuple[str, str]]


class Sampled(NamedTuple):
    """How often a thread was in which state in which function; of how many looks, in how many seconds.

    ``cost``: the CPU seconds that the sampler took beside them.
    """

    looks: int
    seconds: float
    cost: float
    threads: Samples


def state(function: str, holds_gil: bool, call: str, gil: range) -> str:
    """What a thread does; ``call`` is its /proc/PID/task/TID/syscall, ``gil`` where the GIL's parts are."""
    if holds_gil:
        return PYTHON
    words = call.split()
    if not words or words[0] == "-1":  # gone, or waiting for memory
        return CALL
    if words[0] == "running":
        return GUEST if function in _ENTERS_GUEST else CALL
    number, first, second = int(words[0]), int(words[1], 16), int(words[2], 16)
    if number == _FUTEX:
        return GIL_WAIT if first in gil else IDLE if function in _AWAITS_WORK else LOCK_WAIT
    if number == _IOCTL and second & 0xFFFFFFFF == _KVM_RUN:
        return IDLE  # so does the guest
    return IDLE if number in _WAITING else CALL


@contextlib.contextmanager
def sampled(pid: int) -> Iterator[list[Sampled]]:
    """Look at a program during the block; the list has the samples after it.

    Raises SystemExit for a Python whose parts are not known.
    """
    if sys.version_info[:2] != _VERSION or sys.implementation.name != "cpython":
        sys.exit(f"a profile needs CPython {'.'.join(map(str, _VERSION))}, with which pyvmm then runs, too")
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_sample, args=(pid, there), daemon=True)
    process.start()
    found: list[Sampled] = []
    try:
        yield found
        here.send(None)
        found.append(here.recv())
    finally:
        process.kill()
        process.join()


def _sample(pid: int, pipe: multiprocessing.connection.Connection) -> None:
    start, cost = time.monotonic(), time.process_time()
    looks, threads, program = 0, Samples(), None
    while not pipe.poll(random.uniform(0.5, 1.5) * PERIOD):  # not in step with the guest's timer
        with contextlib.suppress(OSError):  # it has just begun, or its threads change
            program = program or Program(pid)
            threads.update(program.look())
            looks += 1
    pipe.send(Sampled(looks, time.monotonic() - start, time.process_time() - cost, threads))


class Program:
    """A process that runs the same Python as this one. Raises OSError for what cannot be read just now."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._vm_read = ctypes.CDLL(None, use_errno=True).process_vm_readv
        runtime = _address("_PyRuntime")
        offsets = struct.unpack("40Q", ctypes.string_at(runtime, 320))
        self._at = {name: offsets[place] for name, place in _WORDS.items()}
        moved = moved_by(Path("/proc/self/maps").read_text(), Path(f"/proc/{pid}/maps").read_text(), runtime)
        self._code_type = _address("PyCode_Type") + moved
        (head,) = self._read((runtime + moved + self._at["interpreters"], 8))
        self._interpreter = _word(head)
        if not self._interpreter:
            raise OSError(errno.EAGAIN, "it has just begun")
        gil = self._interpreter + self._at["gil"]
        self._gil = range(gil, gil + _GIL_SIZE)
        self._threads: list[int] = []
        self._chunks: list[int] = []
        self._names: dict[tuple[int, int], str] = {}
        self._calls: dict[int, int] = {}  # descriptors, by thread; as many as there ever were threads

    def look(self) -> list[tuple[str, str]]:
        """The state and the innermost function of each thread."""
        gil, threads, stacks = self._snapshot()
        at = self._at
        flags = self._interpreter - self._gil.start
        holder = _word(gil, flags + at["holder"]) if gil[flags + at["locked"]] else 0
        frames = [_word(thread, at["frame"]) for thread in threads]
        codes = [self._code(*found) for found in zip(frames, self._chunks, stacks, strict=True)]
        found = []
        for address, thread, function in zip(self._threads, threads, self._functions(codes), strict=True):
            holds = address == holder
            call = "" if holds else self._call(_word(thread, at["native id"]))
            seen = state(function, holds, call, self._gil), function
            if seen[0] == LOCK_WAIT:  # or it went on since the snapshot, and waits for work by now
                now = self._function_now(address)
                seen = state(now, holds, call, self._gil), now
            found.append(seen)
        self._chunks = [_word(thread, at["chunk"]) for thread in threads]
        return found

    def _function_now(self, address: int) -> str:
        (thread,) = self._read((address, self._at["thread"]))
        (function,) = self._functions([self._code(_word(thread, self._at["frame"]), 0, b"")])
        return function

    def _call(self, thread: int) -> str:
        if thread not in self._calls:
            self._calls[thread] = os.open(f"/proc/{self._pid}/task/{thread}/syscall", os.O_RDONLY)
        return os.pread(self._calls[thread], 200, 0).decode()

    def _snapshot(self) -> tuple[bytes, list[bytes], list[bytes]]:
        """The GIL, the threads, and each one's stack of frames, of one moment."""
        size = self._at["thread"]
        try:
            head, gil, *rest = self._read(
                (self._interpreter + self._at["threads"], 8),
                (self._gil.start, _GIL_SIZE),
                *((thread, size) for thread in self._threads),
                *((chunk, _CHUNK if chunk else 0) for chunk in self._chunks),
            )
            count = len(self._threads)
            threads, stacks = rest[:count], rest[count:]
            chain = [_word(head), *(_word(thread, self._at["next"]) for thread in threads)]
            if chain != [*self._threads, 0]:
                raise OSError(errno.EAGAIN, "it has other threads than before")
        except OSError:
            self._find_threads()
            raise
        return gil, threads, stacks

    def _find_threads(self) -> None:
        self._threads, self._chunks = [], []
        (head,) = self._read((self._interpreter + self._at["threads"], 8))
        while address := _word(head):
            (thread,) = self._read((address, self._at["thread"]))
            self._threads.append(address)
            self._chunks.append(_word(thread, self._at["chunk"]))
            head = thread[self._at["next"] :]

    def _code(self, frame: int, chunk: int, stack: bytes) -> int:
        """What a frame executes: from the snapshot where it has the frame."""
        if not frame:
            return 0
        place = frame + self._at["executable"]
        if chunk <= place <= chunk + len(stack) - 8:
            return _word(stack, place - chunk)
        (word,) = self._read((place, 8))
        return _word(word)

    def _functions(self, codes: list[int]) -> list[str]:
        size = max(self._at["qualname"], self._at["filename"]) + 8
        objects = self._read(*((code, size if code else 0) for code in codes))
        return [self._function(found) for found in objects]

    def _function(self, code: bytes) -> str:
        if not code or _word(code, _OBJECT_TYPE) != self._code_type:
            return "?"  # between two frames, or no Python at all
        key = _word(code, self._at["filename"]), _word(code, self._at["qualname"])
        if key not in self._names:
            file, function = (self._text(address) for address in key)
            self._names[key] = f"{file.rpartition('/')[2].removesuffix('.py')}.{function}"
        return self._names[key]

    def _text(self, address: int) -> str:
        (head,) = self._read((address, _ASCII_DATA))
        (data,) = self._read((address + _ASCII_DATA, min(_word(head, _ASCII_LENGTH), _LONGEST_NAME)))
        return data.decode(errors="replace")

    def _read(self, *ranges: tuple[int, int]) -> list[bytes]:
        """All of the ranges, each an address and a length, in one call."""
        total = sum(length for _, length in ranges)
        buffer = ctypes.create_string_buffer(total)
        ours = struct.pack("QQ", ctypes.addressof(buffer), total)
        theirs = struct.pack(f"{2 * len(ranges)}Q", *(word for one in ranges for word in one))
        if self._vm_read(self._pid, ours, 1, theirs, len(ranges), 0) != total:
            raise OSError(errno.EFAULT, "it has nothing there any more")
        data, parts, start = buffer.raw, [], 0
        for _, length in ranges:
            parts.append(data[start : start + length])
            start += length
        return parts


def moved_by(ours: str, theirs: str, address: int) -> int:
    """How much higher the file that is at ``address`` lies in the other process, by /proc/PID/maps of both.

    Raises OSError while it does not lie there.
    """
    path = next(name for first, last, name in _mappings(ours) if first <= address < last)
    bases = [
        min((start for start, _, name in _mappings(maps) if name == path), default=0)
        for maps in (ours, theirs)
    ]
    if not all(bases):
        raise OSError(errno.EAGAIN, "it has just begun")
    return bases[1] - bases[0]


def _mappings(maps: str) -> Iterator[tuple[int, int, str]]:
    for line in maps.splitlines():
        words = line.split(maxsplit=5)
        if len(words) > 5:
            first, last = words[0].split("-")
            yield int(first, 16), int(last, 16), words[5]


def _address(symbol: str) -> int:
    return ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, symbol))


def _word(data: bytes, offset: int = 0) -> int:
    return int.from_bytes(data[offset : offset + 8], "little")
