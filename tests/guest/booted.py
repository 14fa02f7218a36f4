# SPDX-License-Identifier: Apache-2.0
"""A guest under `pyvmm run`, driven through its console with pexpect."""

import re
import sys

import pexpect

PATIENCE = 300  # seconds; a busy emulated host is slow, and only a failing test waits this long
PYVMM = [sys.executable, "-m", "pyvmm", "run", "--host=local"]


class BootedGuest:
    """`pyvmm run` on a terminal, and the shell in its guest."""

    def __init__(self, arguments, command=None):
        command = command or PYVMM
        self._commands = 0
        self._child = pexpect.spawn(
            command[0],
            [*command[1:], *arguments],
            timeout=PATIENCE,
            encoding="utf-8",
            codec_errors="replace",
            maxread=65536,
            searchwindowsize=4096,
            dimensions=(24, 200),
        )
        self._child.delaybeforesend = None
        self.send = self._child.send
        self.sendline = self._child.sendline

    def expect(self, pattern, timeout=PATIENCE):
        """Wait for ``pattern`` on the console; returns the match."""
        self._child.expect(pattern, timeout=timeout)
        return self._child.match

    def expect_any(self, *patterns, timeout=PATIENCE):
        """Wait for any of ``patterns`` (TIMEOUT is one, too); returns which."""
        return self._child.expect(list(patterns), timeout=timeout)

    def wait_for_shell(self):
        """Wait for the initramfs's prompt."""
        self.expect(r"~ # ")

    def run(self, command, timeout=PATIENCE):
        """Run a shell command in the guest; returns what it printed. Its status must be 0."""
        self._commands += 1
        # The quotes keep the marker out of the command's own echo.
        self.sendline(f"{command}; echo DONE''{self._commands}:$?")
        match = self.expect(rf"DONE{self._commands}:(\d+)\r\n", timeout)
        output = self._child.before
        assert match[1] == "0", f"{command!r} failed: {output}"
        # Typed ahead of the prompt it is echoed twice: by the terminal, and by the shell.
        return output.rpartition(f"DONE''{self._commands}:$?\r\n")[2]

    def resize(self, rows, columns):
        """Change the size of the terminal that pyvmm runs on."""
        self._child.setwinsize(rows, columns)

    def end(self, timeout=PATIENCE):
        """Wait for the end of pyvmm: its exit code and the reason it gave."""
        self._child.expect(pexpect.EOF, timeout=timeout)
        said = re.findall(r"pyvmm: (.*?)\r+\n", self._child.before)
        self._child.close()
        return self._child.exitstatus, said[-1] if said else self._child.before

    def close(self):
        """End it, whatever state it is in."""
        self._child.close(force=True)
