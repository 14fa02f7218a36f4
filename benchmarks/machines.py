# SPDX-License-Identifier: Apache-2.0
"""Guests of one program that uses the library: ``machines.py KERNEL INITRD MEM``, by itself.

Each line of input starts one more; the program answers with a prompt when that guest's shell shows one.
"""

from __future__ import annotations

import contextlib
import sys
import threading

import pyvmm

_PROMPT = b"~ # "


def main() -> None:
    kernel, initrd, mem = sys.argv[1:]
    with contextlib.ExitStack() as machines:
        for _ in sys.stdin:
            config = pyvmm.MachineConfig(kernel=kernel, initrd=initrd, mem=mem, params="quiet")
            _boot(machines.enter_context(pyvmm.Machine(config)))
            print(_PROMPT.decode(), flush=True)


def _boot(machine: pyvmm.Machine) -> None:
    """Start it, and wait for the prompt."""
    shown = bytearray()
    prompted = threading.Event()

    def show(data: bytes) -> None:
        shown.extend(data)
        if _PROMPT in shown:
            prompted.set()

    machine.observe_console(show)
    machine.start()
    prompted.wait()


if __name__ == "__main__":
    main()
