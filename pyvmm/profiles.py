# SPDX-License-Identifier: Apache-2.0
"""``pyvmm.toml``: the keywords of MachineConfig in a file, as ``[defaults]`` and ``[profile.NAME]``.

Of a keyword's values the last one counts: the defaults', the profile's, then the one given to the command or
in the program. Devices and disabled extensions, which a machine may have many of, add up in that order.
Relative paths are relative to the file.
"""

from __future__ import annotations

import os

from pyvmm.config import CONFIG_FILE, MachineConfig
from pyvmm.devicelist import NOUNS
from pyvmm.devices import KINDS, device_kind
from pyvmm.devices.settings import relocate
from pyvmm.errors import ConfigError
from pyvmm.nearest import nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    Values = dict[str, object]

#: Keyword of MachineConfig -> its type, as it is written there.
KEYS: dict[str, str] = {
    key: kind for key, kind in MachineConfig.__init__.__annotations__.items() if key != "return"
}
ADDING = ("disks", "nets", "p9", "shares", "ports", "devices", "disable_isa", "disable_sbi")
PATHS = ("kernel", "initrd", "firmware", "dump_dtb", "log", "trace_out", "dev")

# What people write for a keyword, having the command line in mind.
_OPTION_NAMES = {
    **{option.removeprefix("--"): noun for noun, (option, _) in NOUNS.items()},
    "device": "devices",
    "append": "params",
}


def load(path: str | None = None, profile: str | None = None) -> Values:
    """Keywords for MachineConfig from ``path`` (``pyvmm.toml`` here): the defaults, ``profile`` over them.

    Raises ConfigError, naming the file, for whatever is wrong in it, also in profiles nobody asked for.
    """
    name = path or CONFIG_FILE
    if path is None and not os.path.exists(name):
        raise ConfigError(f"There is no {CONFIG_FILE} in this folder; name the file with --config FILE.")
    defaults, profiles = _tables(name, _parse(name))
    if profile is None:
        return defaults
    if profile not in profiles:
        known = f" It has {', '.join(sorted(profiles))}." if profiles else ""
        raise ConfigError(f"{name} has no profile {profile!r}.{nearest(profile, profiles) or known}")
    return merge(defaults, profiles[profile])


def merge(first: Mapping[str, object], then: Mapping[str, object]) -> Values:
    """``then`` over ``first``: lists of devices and extensions add up, everything else is replaced."""
    merged = {**first, **then}
    for key in ADDING:
        before, after = first.get(key), then.get(key)
        if isinstance(before, list) and isinstance(after, list):
            merged[key] = [*before, *after]
    return merged


def resolve(given: Mapping[str, object], path: str | None = None, profile: str | None = None) -> Values:
    """``given`` over what the file says. Keys that are not MachineConfig's are left alone.

    Raises ConfigError; it names the file when ``given`` is fine without it.
    """
    name = path or CONFIG_FILE
    merged = merge(load(path, profile), given)
    try:
        _machine(merged)
    except ConfigError as error:
        _machine(given)
        raise ConfigError(f"{name}: {error}") from None
    return merged


def _machine(values: Mapping[str, object]) -> MachineConfig:
    return MachineConfig(**{key: value for key, value in values.items() if key in KEYS})  # type: ignore[arg-type]


def _parse(path: str) -> Values:
    import tomllib

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text, as TOML is.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {str(error).rstrip('.')}.") from None


def _tables(path: str, content: Values) -> tuple[Values, dict[str, Values]]:
    """The defaults and the profiles of a file, every value checked for its type."""
    for key in content:
        if key in KEYS:
            raise ConfigError(f"{path}: {key} stands above the tables; put it under [defaults].")
        if key not in ("defaults", "profile"):
            hint = nearest(key, ("defaults", "profile"))
            raise ConfigError(f"{path} has [defaults] and [profile.NAME], but no [{key}].{hint}")
    defaults = _table(path, "defaults", content.get("defaults", {}))
    profiles = content.get("profile", {})
    if not isinstance(profiles, dict):
        raise ConfigError(f"{path}: write [profile.NAME] above the keys of each profile.")
    return defaults, {name: _table(path, f"profile.{name}", table) for name, table in profiles.items()}


def _table(path: str, name: str, table: object) -> Values:
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {name} is a table: write [{name}] above its keys.")
    where = f"{path}: [{name}]"
    return {key: _value(where, key, value, os.path.dirname(path)) for key, value in table.items()}


def _value(where: str, key: str, value: object, folder: str) -> object:
    """``value`` as MachineConfig takes it. Raises ConfigError for keys and types that it does not take."""
    if key not in KEYS:
        other = _OPTION_NAMES.get(key)
        hint = f" Did you mean {other}?" if other else nearest(key, KEYS)
        raise ConfigError(f"{where} has no key {key!r}.{hint}")
    kind = KEYS[key]
    if isinstance(value, bool):
        fits = "bool" in kind
        if "list" in kind:
            value = [""] if value else []
    elif isinstance(value, list):
        fits = "list" in kind and all(isinstance(text, str) for text in value)
    elif isinstance(value, str):
        fits = "list" not in kind
    else:
        fits = type(value).__name__ in kind or (isinstance(value, int) and "float" in kind)
    if not fits:
        raise ConfigError(f"{where}: {key} takes {describe(key)}.")
    return _located(where, key, value, folder)


def describe(key: str) -> str:
    """What a keyword takes in the file, in words."""
    kind = KEYS[key]
    if "list" in kind:
        choice = "true, or " if "bool" in kind else ""
        return f'{choice}a list of texts: ["...", "..."]'
    if kind == "bool":
        return "true or false"
    if "float" in kind:
        return "a text in quotes, or a number"
    if "int" in kind:
        return "a text in quotes, or a whole number"
    return "a text in quotes"


def _located(where: str, key: str, value: object, folder: str) -> object:
    """``value`` with paths counted from ``folder``, and ~ as the user's home."""
    if isinstance(value, list):
        return [_located_device(f"{where}: {key} {text!r}", key, text, folder) for text in value]
    if not isinstance(value, str) or not value:
        return value
    if key in PATHS:
        return os.path.join(folder, os.path.expanduser(value))
    kind, colon, path = value.partition(":")
    if key == "mem_backend" and path:
        return kind + colon + os.path.join(folder, os.path.expanduser(path))
    return value


def _located_device(what: str, key: str, body: str, folder: str) -> str:
    start = ""
    if key == "devices":
        kind, comma, body = body.partition(",")
        start = kind + comma
    else:
        kind = NOUNS[key][1] if key in NOUNS else ""
    if kind not in KINDS:  # the name of an extension; or of nothing, for which MachineConfig has a sentence
        return start + body
    model = device_kind(kind)
    return start + relocate(what, body, model.SETTINGS, model.POSITIONAL, folder)
