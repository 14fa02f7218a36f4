# SPDX-License-Identifier: Apache-2.0
"""What a virtio device's transport saves of what the driver set, checked before it is taken over."""

from __future__ import annotations

from pyvmm.devices.virtio import bits
from pyvmm.devices.virtio.queueregs import QueueRegisters
from pyvmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.devices.virtio.core import VirtioCore
    from pyvmm.mmio.regs import State


def saved(core: VirtioCore) -> State:
    """See ``VirtioCore.state``."""
    state: State = {name: getattr(core, name) for name in core.NUMBERS}
    state["queues"] = [queue.state() for queue in core.registers]
    session = core.session
    rings = [queue.ring for queue in session.queues] if session is not None and session.alive else []
    state["rings"] = [ring.state() if ring is not None else {} for ring in rings]
    state["device"] = core.device.state()
    return state


def load(core: VirtioCore, state: State) -> None:
    """See ``VirtioCore.load_state``."""
    core.reset()
    if set(state) != set(core.STATE):
        raise ConfigError(f"The saved state of {core.device.NAME} is from another version.")
    numbers, queues, rings, device = _checked(core, state)
    core.device.load_state(device)
    for name, value in numbers.items():
        setattr(core, name, value)
    for registers, queue in zip(core.registers, queues, strict=True):
        registers.load_state(queue)
    if core.status & bits.DRIVER_OK and not core.status & bits.NEEDS_RESET:
        _resume(core, rings)


def _checked(
    core: VirtioCore, state: State
) -> tuple[dict[str, int], list[dict[str, int]], list[dict[str, int]], State]:
    """Numbers, queues, rings and the device's own, in their form. Raises ConfigError."""
    numbers = _numbers_of({name: state[name] for name in core.NUMBERS}, core.NUMBERS)
    queues, rings = _tables_of(state["queues"]), _tables_of(state["rings"])
    device, count = state["device"], len(core.registers)
    if (
        numbers is None
        or [_numbers_of(queue, QueueRegisters.NAMES) for queue in queues] != queues
        or len(queues) != count
        or len(rings) not in (0, count)
        or not isinstance(device, dict)
    ):
        raise _damaged(core)
    return numbers, queues, rings, device


def _damaged(core: VirtioCore) -> ConfigError:
    return ConfigError(f"The saved state of {core.device.NAME} is damaged.")


def _resume(core: VirtioCore, rings: list[dict[str, int]]) -> None:
    try:
        core.activate(rings)
    except (KeyError, IndexError):
        core.reset()
        raise _damaged(core) from None
    session = core.session
    assert session is not None
    for queue in session.queues:
        if session.alive and queue.ring is not None and not queue.offloaded:
            session.used(queue)  # an interrupt may have been put off
            session.kick(queue)


def _numbers_of(value: object, names: Sequence[str]) -> dict[str, int] | None:
    """``value``, if it has a number under each of these names and nothing else."""
    if not isinstance(value, dict) or set(value) != set(names):
        return None
    return value if all(type(number) is int for number in value.values()) else None


def _tables_of(value: object) -> list[dict[str, int]]:
    """``value``, if it is a list of numbers under names; else none."""
    if not isinstance(value, list):
        return []
    well_formed = all(isinstance(item, dict) and _numbers_of(item, [*item]) == item for item in value)
    return value if well_formed else []
