# SPDX-License-Identifier: Apache-2.0
"""The one place that talks to the kernel for all of ``pyvmm.kvm``, and the seam where tests put a fake one.

Why libc's ``ioctl`` through ctypes and not ``fcntl.ioctl``: KVM_RUN returns EINTR on purpose, when somebody
kicks the vCPU. From Python 3.14 on ``fcntl.ioctl`` retries EINTR by itself (PEP 475 reached it), so a kicked
vCPU would silently enter the guest again, and with ``immediate_exit`` set it would spin for ever. Earlier
versions keep the GIL during calls with a large mutable buffer, and pass small buffers by copy. ctypes does
none of that: it drops the GIL, passes the pointer it is given, and returns what the kernel returned.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from errno import EIO, EMFILE, ENFILE, ENOMEM

from pyvmm.errors import KvmError
from pyvmm.kvm import uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    #: An ioctl's argument: a number or address, bytes the kernel only reads, or a buffer it may write.
    Argument = int | bytes | ctypes.Array[ctypes.c_char]
    Hints = dict[int, str]

_libc = ctypes.CDLL(None, use_errno=True)
_ioctl = _libc["ioctl"]
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
_ioctl.restype = ctypes.c_int

# KVM_RUN has its own function object without argtypes: its three arguments are small non-negative integers,
# which ctypes passes as C ints, right for any of them; skipping the conversions makes the call 40% cheaper.
_run = _libc["ioctl"]
_run.restype = ctypes.c_int

#: What an errno means for most KVM ioctls; a caller that knows better gives its own hint.
_HINTS = {
    EIO: "a virtual machine belongs to the process that created it: after fork() the child cannot use it",
    EMFILE: "this process has too many open files: raise `ulimit -n`",
    ENFILE: "the host has too many open files",
    ENOMEM: "the host is out of memory",
}


class Kernel:
    """System calls as ``pyvmm.kvm`` needs them. ``tests/fakes/kernel.py`` overrides every method."""

    #: KVM_RUN as the hot path wants it: (fd, request, 0) -> 0, or -1 with the reason in :meth:`errno`.
    run: Callable[[int, int, int], int] = staticmethod(_run)

    def run_address(self) -> int:
        """The C function behind :attr:`run`, which behaves as ioctl does; 0 when there is none."""
        return ctypes.cast(_run, ctypes.c_void_p).value or 0

    def interrupt_address(self) -> int:
        """A C function for KVM_INTERRUPT, which behaves as ioctl does; 0 when there is none.

        It is called while others may wait with the GIL for a lock of its caller's: it must not need the GIL.
        """
        return self.run_address()

    def machine(self) -> str:
        """The host's architecture as ``uname -m`` prints it."""
        return os.uname().machine

    def open(self, path: str) -> int:
        """Open a device node for reading and writing. Raises OSError."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        """Close a file descriptor."""
        os.close(fd)

    def mmap(self, fd: int, size: int) -> mmap.mmap:
        """Map the first ``size`` bytes of ``fd``, shared, readable and writable. Raises OSError."""
        return mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)

    def eventfd(self) -> int:
        """A new eventfd that does not block. Raises OSError."""
        return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def raw_ioctl(self, fd: int, request: int, argument: Argument = 0) -> int:
        """ioctl as it is: -1 when it failed, with the reason in :meth:`errno`."""
        result: int = _ioctl(fd, request, argument)
        return result

    def errno(self) -> int:
        """Why this thread's last ``raw_ioctl`` or ``run`` failed."""
        return ctypes.get_errno()

    def ioctl(self, fd: int, request: int, argument: Argument = 0, hints: Hints | None = None) -> int:
        """ioctl that raises KvmError; ``hints`` says per errno what this call's caller can do about it."""
        result = self.raw_ioctl(fd, request, argument)
        if result >= 0:
            return result
        errno = self.errno()
        raise KvmError(request_name(request), errno, (hints or {}).get(errno) or _HINTS.get(errno, ""))


def request_name(request: int) -> str:
    """The ioctl's name, or its number when pyvmm does not use it."""
    for name in uapi.IOCTLS:
        if getattr(uapi, name) == request:
            return name
    return f"ioctl 0x{request:08X}"


def out_buffer(data: bytes | int) -> ctypes.Array[ctypes.c_char]:
    """A buffer that the kernel may write: a copy of ``data``, or that many zero bytes."""
    if isinstance(data, int):
        return (ctypes.c_char * data)()
    return (ctypes.c_char * len(data)).from_buffer_copy(data)


def address_of(buffer: mmap.mmap | bytearray) -> int:
    """Where a writable buffer lies in this process. It must outlive every use of the address.

    The ctypes object that finds it out is dropped at once: while it lives, a mapping cannot be closed.
    """
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class Fd:
    """A file descriptor that belongs to one KVM object: closed once, and usable as a context manager."""

    __slots__ = ("fd", "kernel")

    def __init__(self, kernel: Kernel, fd: int) -> None:
        self.kernel = kernel
        self.fd = fd

    def close(self) -> None:
        """Give the descriptor back. Harmless a second time."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self.kernel.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
