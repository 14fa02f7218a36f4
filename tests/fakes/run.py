# SPDX-License-Identifier: Apache-2.0
"""A whole machine on a fake KVM, with its console at the other end of pipes."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

from fakes.kernel import FakeKernel
from fakes.threads import in_time

from pyvmm.config import MachineConfig
from pyvmm.machine import Machine
from pyvmm.outcome import Outcome


def image() -> bytes:
    """The smallest file that is a kernel; it runs 2 MiB into RAM."""
    header = struct.pack("<IIQQQIIQQII", 0, 0, 0x20_0000, 0x1000, 0, 2, 0, 0, 0, 0x05435352, 0)
    return header.ljust(0x1000, b"\0")


class Run:
    """One run. ``reader`` gets the console's output and ``keys`` is its input; calling it runs to the end.

    ``on_note`` is called with every remark, after it was noted.
    """

    def __init__(self, kernel: FakeKernel, config: MachineConfig) -> None:
        self.kernel = kernel
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.trace: list[str] = []
        self.on_note: Callable[[str], None] = lambda text: None
        self.output = b""
        self._started = False
        self.reader, self.writer = os.pipe()
        self._input, self.keys = os.pipe()
        self.machine = Machine(
            config,
            input_fd=self._input,
            output_fd=self.writer,
            note=self._note,
            warn=self.warnings.append,
            show=self.trace.append,
            kernel=kernel,
        )

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.on_note(text)

    def start(self) -> None:
        self._started = True
        self.machine.start()

    def __call__(self) -> Outcome:
        if not self._started:
            self.start()
        end: Outcome = in_time(self.machine.wait)
        in_time(self.machine.close)
        os.close(self.writer)
        self.writer = -1
        with open(self.reader, "rb", closefd=False) as output:
            self.output = output.read()
        return end

    def hang_up(self) -> None:
        """The console's reader goes away."""
        os.close(self.reader)
        self.reader = -1

    def finish(self) -> None:
        """Close everything; fails when the machine does not, or left something open. Idempotent."""
        if self.reader >= 0:
            self.hang_up()  # nobody may go on waiting for it
        in_time(self.machine.close)
        for fd in (self.writer, self._input, self.keys):
            if fd >= 0:
                os.close(fd)
        self.writer = self._input = self.keys = -1
        assert self.kernel.open_fds == []
