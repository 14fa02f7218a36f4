# SPDX-License-Identifier: Apache-2.0
"""pyvmm as a library (docs/reference/library.md), with Linux on real KVM: two machines in one program."""

import threading

from booted import PATIENCE

import pyvmm

SHELL = b"~ # "


class Console:
    """What a machine's console has shown."""

    def __init__(self, machine):
        self.shown = b""
        self._changed = threading.Condition()
        machine.observe_console(self._take)

    def _take(self, data):
        with self._changed:
            self.shown += data
            self._changed.notify_all()

    def expect(self, text):
        """Wait until ``text`` has been shown."""
        with self._changed:
            assert self._changed.wait_for(lambda: text in self.shown, PATIENCE), self.shown


def shell(word):
    """The configuration of Debian's kernel with a busybox shell, and ``word`` on its command line."""
    from pyvmm.lab import guests

    return pyvmm.MachineConfig(
        kernel=str(guests.kernel()),
        initrd=str(guests.initrd()),
        mem="256M",
        params=f"quiet word={word}",
        on_reboot="exit",
        timeout=4 * PATIENCE,
    )


def test_two_machines_of_one_program_run_pause_and_end_apart(real_kvm):
    with pyvmm.Machine(shell("one")) as one, pyvmm.Machine(shell("two")) as two:
        first, second = Console(one), Console(two)
        for machine in (one, two):
            machine.start()
        for console in (first, second):
            console.expect(SHELL)
        for machine, console, word in ((one, first, b"one"), (two, second, b"two")):
            machine.send_input(b"cat /proc/cmdline\n")
            console.expect(b"quiet word=" + word)
        assert b"word=two" not in first.shown
        assert b"word=one" not in second.shown

        one.pause()
        one.send_input(b"echo sum=$((20 + 1))\n")
        two.send_input(b"echo sum=$((20 + 2))\n")
        second.expect(b"sum=22")
        two.send_input(b"reboot -f\n")
        assert (two.wait().reason, two.state) == ("reboot", "ended")
        assert one.state == "paused"
        assert b"sum=21" not in first.shown
        one.resume()
        first.expect(b"sum=21")

        one.send_input(b"poweroff -f\n")
        end = one.wait()
        assert (end.reason, end.exit_code, end.message) == ("poweroff", 0, "the guest powered off")
