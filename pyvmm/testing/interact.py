# SPDX-License-Identifier: Apache-2.0
"""After a failure, the guest's console on the user's terminal (``--vmm-interact``)."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from typing import Any

import pytest

from pyvmm.testing.errors import GuestError
from pyvmm.testing.vm import Vm

END_KEY = b"\x1d"  # Ctrl-]
_TICK = 0.05


def interact(config: pytest.Config, vm: Vm) -> None:
    """Connect the terminal with the console of ``vm`` until Ctrl-] or the guest's end."""
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.suspend_global_capture(in_=True)
    try:
        if os.isatty(0):
            _on_terminal(vm)
    finally:
        if capture is not None:
            capture.resume_global_capture()


def _on_terminal(vm: Vm) -> None:
    sys.stdout.write("\r\n".join(["", *vm.log.tail(20), f"pyvmm: {vm.name} is yours; Ctrl-] goes on\r\n"]))
    sys.stdout.flush()
    saved = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        _converse(vm)
    except GuestError as error:
        sys.stdout.write(f"\r\npyvmm: {error.what}\r\n")
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, saved)


def _converse(vm: Vm) -> None:
    vm.log.forget_pending()
    while True:
        while data := vm.log.take(65536, 0, lambda: False):
            os.write(1, data)
        if data is not None:
            return  # it ended
        if select.select([0], [], [], _TICK)[0]:
            typed, end, _ = os.read(0, 4096).partition(END_KEY)
            vm.write(typed)
            if end:
                return
