# SPDX-License-Identifier: Apache-2.0
"""A guest in this process, steered through its Machine and driven through its console."""

import socket

import pexpect
from booted import PATIENCE
from pexpect.fdpexpect import fdspawn

from pyvmm.config import MachineConfig
from pyvmm.lab import guests
from pyvmm.machine import Machine

SHELL = "~ # "


class SteeredGuest:
    """Debian's kernel with a busybox shell. ``machine`` is started; close it."""

    def __init__(self, *, full=False, params="quiet", **options):
        mem = "512M" if full else "256M"
        options = {
            "kernel": str(guests.kernel()),
            "initrd": str(guests.initrd(full=full)),
            "mem": mem,
            **options,
        }
        self._commands = 0
        self._ours, self._guests = socket.socketpair()
        self.console = fdspawn(
            self._ours.fileno(),
            timeout=PATIENCE,
            encoding="utf-8",
            codec_errors="replace",
            searchwindowsize=4096,
        )
        fd = self._guests.fileno()
        self.machine = Machine(MachineConfig(params=params, **options), input_fd=fd, output_fd=fd)
        try:
            self.machine.start()
        except BaseException:
            self.close()
            raise

    def wait_for_shell(self):
        self.console.expect_exact(SHELL)

    def begin(self, command):
        """Type a command; ``finish`` waits for it, and returns what it printed."""
        self._commands += 1
        self.console.sendline(f"{command}; echo DONE''{self._commands}:$?")

    def finish(self, timeout=PATIENCE):
        self.console.expect(rf"DONE{self._commands}:(\d+)\r\n", timeout=timeout)
        output = self.console.before
        assert self.console.match[1] == "0", output
        return output.rpartition(f"DONE''{self._commands}:$?\r\n")[2]

    def finished(self, seconds):
        """Whether the command has ended, after at most so many seconds of looking."""
        return self.console.expect([rf"DONE{self._commands}:0\r\n", pexpect.TIMEOUT], timeout=seconds) == 0

    def went_on(self):
        """Whether the command has ended; else it has printed a dot, which is waited for."""
        return self.console.expect([rf"DONE{self._commands}:0\r\n", r"\."]) == 0

    def forget_dots(self):
        """Have ``went_on`` wait for a dot that is yet to come."""
        self.console.buffer = self.console.buffer.replace(".", "")

    def run(self, command, timeout=PATIENCE):
        self.begin(command)
        return self.finish(timeout)

    def close(self):
        """End it. Idempotent."""
        self.machine.close()
        self._ours.close()
        self._guests.close()
