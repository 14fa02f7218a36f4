# SPDX-License-Identifier: Apache-2.0
"""The exception tree. What a guest does never raises one of these out of a device."""

from __future__ import annotations

import errno as _errno
import os


class PyvmmError(Exception):
    """Base of every error pyvmm raises on purpose. Its text is one full sentence for the user."""


class ConfigError(PyvmmError):
    """The user asked for something that cannot be done, and can change it."""


class HostError(PyvmmError):
    """The host refused something; ``errno`` says what. Chain the OSError with ``raise ... from``."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class KvmError(HostError):
    """A KVM ioctl failed.

    ``ioctl`` is its name, ``errno`` the kernel's answer, ``hint`` a sentence on what usually causes it.
    """

    def __init__(self, ioctl: str, errno: int, hint: str = "") -> None:
        name = _errno.errorcode.get(errno, str(errno))
        super().__init__(
            f"{ioctl} failed: {os.strerror(errno)} ({name})" + (f"; {hint}" if hint else ""), errno
        )
        self.ioctl = ioctl
        self.hint = hint


class KvmUnavailable(HostError):
    """This host cannot run RISC-V guests through KVM at all."""


class MachineError(PyvmmError):
    """A running machine cannot do what was asked of it, or not now."""


class GuestAccessError(PyvmmError):
    """An address that the guest named is not backed by its memory. Devices catch it and count."""


class QueueError(GuestAccessError):
    """The guest broke a virtqueue: its addresses, its indices or a descriptor. The device needs a reset."""


class BusError(PyvmmError):
    """Two mappings overlap, or one is empty or wraps: a wiring bug of the machine, never of a guest."""
