# SPDX-License-Identifier: Apache-2.0
"""Running a guest in the lab, from a machine that has no RISC-V KVM."""

from __future__ import annotations

import os
import signal

from pyvmm import outcome, preview
from pyvmm.cli.say import say
from pyvmm.config import MachineConfig, format_size
from pyvmm.errors import ConfigError

DEFAULT_FLAVOUR = "aia"
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def run_in_lab(
    words: list[str], config: MachineConfig, where: str, *, quiet: bool, tty: bool | None = None
) -> int:
    """``pyvmm`` with these words, which say all that ``config`` does, in a lab host; its exit code.

    What the user got wrong is found here, before a host is started for it. ``tty`` is Lab.run's.
    """
    flavour = where.partition(":")[2] or DEFAULT_FLAVOUR
    preview.check(config)
    _check_memory(config.mem)
    from pyvmm.cli.reach import Reach
    from pyvmm.lab.host import Lab

    reach = Reach(words)
    reach.check()
    if not quiet:
        say(f"no RISC-V KVM on this {os.uname().machine} machine: running in the lab (flavour {flavour})")
    for port in reach.unreachable:
        say(f"port {port} for UDP is published in the lab only, not on this machine")
    command = ["python3", "-m", "pyvmm", *reach.words]
    lab, show = Lab(flavour), no_progress if quiet else progress
    lab.start(show)
    before = {number: signal.signal(number, _end) for number in _ENDING_SIGNALS if not _ignored(number)}
    try:
        with lab.forwarding(reach.pairs):
            return lab.run(command, tty=tty, progress=show)
    except _Ended as end:
        return outcome.EXIT_SIGNAL + end.number
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_memory(size: int) -> None:
    from pyvmm.lab.qemu import MEMORY

    if size >= MEMORY:
        total, asked = format_size(MEMORY), format_size(size)
        raise ConfigError(f"A lab host has {total} in all, and --mem asks for {asked}; ask for less.")


class _Ended(BaseException):
    """A signal wants us to end, and what leads to the lab must not stay: the next guest may want it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _end(number: int, _frame: object) -> None:
    for other in _ENDING_SIGNALS:  # a terminal that closes sends two, and undoing takes a moment
        signal.signal(other, signal.SIG_IGN)
    raise _Ended(number)


def _ignored(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


def progress(text: str) -> None:
    """Show what the lab is busy with."""
    say(f"lab: {text}")


def no_progress(_text: str) -> None:
    """``--quiet``."""
