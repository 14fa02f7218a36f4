# SPDX-License-Identifier: Apache-2.0
"""What a user may say about a device: ``KIND,key=value,flag``, declared by the device and checked here.

A device class lists its keys in ``SETTINGS`` and, in ``POSITIONAL``, those that may be given as bare leading
words (``disk.img,ro``). Values are parsed and checked before any device is opened.
"""

from __future__ import annotations

import os

from pyvmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_SIZE_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Setting:
    """One key. ``parse`` turns its text into a value or raises ValueError saying what it takes.

    ``default`` is its value when it is not given; ``bare`` the text that a key without ``=`` stands for.
    ``is_path``: it names something in the host's file system.
    """

    __slots__ = ("bare", "default", "help", "is_path", "parse")

    def __init__(
        self,
        parse: Callable[[str], object],
        help: str,
        *,
        default: object = None,
        bare: str | None = None,
        is_path: bool = False,
    ) -> None:
        self.parse = parse
        self.help = help
        self.default = default
        self.bare = bare
        self.is_path = is_path


def flag(help: str) -> Setting:
    """A key that is off unless named: ``ro``, also ``ro=on`` and ``ro=off``."""
    return Setting(_parse_flag, help, default=False, bare="on")


def text(help: str, default: str | None = None) -> Setting:
    """A key with any text that is not empty."""
    return Setting(_parse_text, help, default=default)


def path(help: str) -> Setting:
    """A key with the path of a file or folder of the host."""
    return Setting(_parse_text, help, is_path=True)


def tag(help: str, default: str, most: int) -> Setting:
    """A key with the name of a shared folder, of ``most`` bytes, which looks like no flag of one."""

    def parse(value: str) -> str:
        if value in ("ro", "rw"):
            raise ValueError("a name (folders are read-only unless rw is there)")
        if len(os.fsencode(value)) > most:
            raise ValueError(f"a name of at most {most} bytes")
        return _parse_text(value)

    return Setting(parse, help, default=default)


def number(help: str, low: int, high: int, default: int | None = None) -> Setting:
    """A key with a whole number from ``low`` to ``high``, decimal or 0x."""

    def parse(value: str) -> int:
        try:
            result = int(value, 0)
        except ValueError:
            result = low - 1
        if not low <= result <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return result

    return Setting(parse, help, default=default)


def size(help: str, default: int | None = None) -> Setting:
    """A key with a number of bytes: 4096, 64K, 512M, 2G."""

    def parse(value: str) -> int:
        return _parse_size(value, 1, "4096, 64K or 512M")

    return Setting(parse, help, default=default)


def memory(help: str, default: int | None = None) -> Setting:
    """A key with a number of bytes of guest memory: 512M, 2G; a bare number is MiB."""

    def parse(value: str) -> int:
        return _parse_size(value, 1 << 20, "512M or 2G (a bare number is MiB)")

    return Setting(parse, help, default=default)


def choice(help: str, *choices: str, default: str | None = None) -> Setting:
    """A key with one of some words."""

    def parse(value: str) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return value

    return Setting(parse, help, default=default)


class Settings:
    """Checked values of one device, by key. ``what`` is how the user spelled it, for error messages.

    ``name`` is the device's own among those of its machine, such as ``net1``, where there is a machine.
    """

    __slots__ = ("_values", "name", "what")

    def __init__(self, values: Mapping[str, object], what: str) -> None:
        self._values = values
        self.what = what
        self.name = ""

    def text(self, key: str) -> str | None:
        """A text, or None when it was not given."""
        value = self._values[key]
        assert value is None or isinstance(value, str)
        return value

    def number(self, key: str) -> int | None:
        """A number, or None when it was not given."""
        value = self._values[key]
        assert value is None or isinstance(value, int)
        return value

    def flag(self, key: str) -> bool:
        """Whether it is on."""
        return bool(self._values[key])

    def values(self) -> dict[str, object]:
        """All of them, by key, with the defaults of those that were not given."""
        return dict(self._values)

    def require(self, key: str) -> str:
        """A text that has to be there. Raises ConfigError."""
        value = self.text(key)
        if value is None:
            raise ConfigError(f"{self.what} needs {key}=.")
        return value


def parse(what: str, body: str, known: Mapping[str, Setting], positional: tuple[str, ...] = ()) -> Settings:
    """Parse ``body``, the part after the kind. Raises ConfigError naming ``what`` (``--disk x.img,foo``)."""
    values: dict[str, object] = {key: setting.default for key, setting in known.items()}
    for key, _, given in _words(what, body, known, positional):
        bare = known[key].bare
        if given is None and bare is None:
            raise ConfigError(f"{what} needs a value for {key}: {key}=...")
        try:
            values[key] = known[key].parse(bare or "" if given is None else given)
        except ValueError as error:
            raise ConfigError(f"{what}: {key} takes {error}, not {given!r}.") from None
    return Settings(values, what)


def relocate(
    what: str, body: str, known: Mapping[str, Setting], positional: tuple[str, ...], folder: str
) -> str:
    """``body`` with its relative paths counted from ``folder``. Raises ConfigError as ``parse`` does."""
    words = []
    for key, spelled, given in _words(what, body, known, positional):
        if given is None:
            words.append(key)
        elif known[key].is_path:
            words.append(spelled + os.path.join(folder, os.path.expanduser(given)))
        else:
            words.append(spelled + given)
    return ",".join(words)


def _words(
    what: str, body: str, known: Mapping[str, Setting], positional: tuple[str, ...]
) -> Iterator[tuple[str, str, str | None]]:
    """Each word of ``body``: its key, ``key=`` where that was written, and its text if it has one."""
    given: set[str] = set()
    waiting = list(positional)
    for word in body.split(",") if body else []:
        key, equals, value = word.partition("=")
        spelled = key + equals
        if waiting and (key not in known or (not equals and known[key].bare is None)):
            key, spelled, value, equals = waiting.pop(0), "", word, "="
        if key not in known:
            from pyvmm.nearest import nearest

            hint = nearest(key, known) or f" It has {', '.join(known) or 'none'}."
            raise ConfigError(f"{what} has no setting {key!r}.{hint}")
        if key in given:
            raise ConfigError(f"{what} has {key} twice.")
        given.add(key)
        waiting = [other for other in waiting if other != key]
        yield key, spelled, value if equals else None


def _parse_flag(value: str) -> bool:
    if value in ("on", "1", "yes", "true"):
        return True
    if value in ("off", "0", "no", "false"):
        return False
    raise ValueError("on or off")


def _parse_text(value: str) -> str:
    if not value:
        raise ValueError("a text that is not empty")
    return value


def _parse_size(value: str, bare: int, examples: str) -> int:
    digits = value.rstrip("KMGTkmgt")
    unit = value[len(digits) :].upper()
    if not digits.isascii() or not digits.isdigit() or len(digits) > 15 or unit not in ("", *_SIZE_UNITS):
        raise ValueError(f"a size such as {examples}")
    return int(digits) * _SIZE_UNITS.get(unit, bare)
