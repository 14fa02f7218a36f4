# SPDX-License-Identifier: Apache-2.0
"""Ending a guest as gently as it lets us: its power key, then SysRq, then force."""

from __future__ import annotations

from functools import partial

from pyvmm import outcome
from pyvmm.errors import PyvmmError
from pyvmm.outcome import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.control.served import Served
    from pyvmm.machine import Machine

#: Seconds a guest has to power off once its power key was pressed.
GRACE = 20.0

BY_POWER_KEY = "power-key"
BY_SYSRQ = "sysrq"
BY_FORCE = "forced"
#: It did not power off, and ended while it was being asked: by a panic, by somebody else.
OTHERWISE = "otherwise"

# Seconds between two presses of the power key: whoever acts on it may not have been there for the first.
_PRESSES = 5.0
# Seconds that Linux gets to sync, to remount read-only and to power off, at most.
_SYSRQ_GRACE = 5.0


def stop(served: Served, grace: float) -> str:
    """End the guest and return what it took. ``grace``: seconds it has after each time of asking.

    Blocks for about as long as ``grace``. A paused guest is resumed: it could not hear otherwise. The guest
    may end at any moment, of itself or by somebody else: what it can no longer be asked is left out.
    """
    machine = served.machine
    if machine.paused:
        _ask(machine.resume)
    if _heeds_power_key(served, grace):
        return _how(machine, BY_POWER_KEY)
    asked = all(_ask(partial(machine.sysrq, key)) for key in "suo")
    if asked and served.wait(min(grace, _SYSRQ_GRACE)):
        return _how(machine, BY_SYSRQ)
    force = Outcome(outcome.KILLED, "the guest did not power off when asked, and was ended by force")
    machine.end(force)
    served.wait()
    if machine.wait() is force:
        return BY_FORCE
    return _how(machine, BY_SYSRQ if asked else BY_POWER_KEY)


def _heeds_power_key(served: Served, grace: float) -> bool:
    press = served.machine.power_button
    if not _ask(press):
        return False
    while grace > _PRESSES:
        if served.wait(_PRESSES):
            return True
        _ask(press)  # refused by a guest that is going down: it still has its time
        grace -= _PRESSES
    return served.wait(grace)


def _how(machine: Machine, asked: str) -> str:
    """What the guest, which has ended, was last ``asked`` by, if it did that."""
    return asked if machine.wait().reason == outcome.POWEROFF else OTHERWISE


def _ask(how: Callable[[], None]) -> bool:
    """Whether this guest can be asked so."""
    try:
        how()
    except PyvmmError:
        return False
    return True
