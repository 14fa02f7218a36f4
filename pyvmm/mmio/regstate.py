# SPDX-License-Identifier: Apache-2.0
"""What a device with registers saves, in JSON's types, and how that is checked and taken over."""

from __future__ import annotations

from pyvmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.mmio.regs import RegisterDevice, State


def saved(device: RegisterDevice, names: tuple[str, ...]) -> State:
    """What ``device`` holds by these names."""
    return {name: _plain(getattr(device, name)) for name in names}


def load(device: RegisterDevice, names: tuple[str, ...], state: State) -> None:
    """Put ``state`` into ``device``, see ``RegisterDevice.load_state``."""
    if set(state) != set(names):
        differing = ", ".join(sorted(set(state) ^ set(names)))
        raise ConfigError(f"The saved state of {device.NAME} is from another version: {differing} differ.")
    masks = {register.name: register.mask for register in device.registers()}
    for name in names:
        if not _same_form(state[name], getattr(device, name), masks.get(name, -1)):
            raise ConfigError(f"The saved state of {device.NAME} is damaged: {name} has another form.")
    for name in names:
        setattr(device, name, _live(state[name], getattr(device, name)))


def _plain(value: object) -> object:
    """A copy of what a device holds, for its state."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value


def _live(value: object, like: object) -> object:
    """The other way round, for what has the form of ``like``."""
    if isinstance(value, list) and isinstance(like, list):
        return [_live(new, old) for new, old in zip(value, like, strict=True)]
    return bytes.fromhex(value) if isinstance(value, str) else value


def _same_form(value: object, like: object, mask: int) -> bool:
    """Whether ``value`` has the form of ``like``, and no bits outside of ``mask``.

    Lists have a length that is the device's make; bytes are contents, of any length.
    """
    if isinstance(like, list):
        if not isinstance(value, list) or len(value) != len(like):
            return False
        return all(_same_form(new, old, mask) for new, old in zip(value, like, strict=True))
    if isinstance(like, bytes):
        return isinstance(value, str) and len(value) % 2 == 0 and not value.strip("0123456789abcdef")
    if type(value) is not type(like):
        return False
    return not isinstance(value, int) or not value & ~mask
