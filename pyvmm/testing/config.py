# SPDX-License-Identifier: Apache-2.0
"""A guest as tests ask for it: the nouns of the command line, given by options, fixtures and markers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pyvmm.cli.options import MACHINE_OPTIONS, PREFIXES, RUN_OPTIONS
from pyvmm.cli.parser import Option
from pyvmm.cli.run import COMMAND
from pyvmm.errors import ConfigError
from pyvmm.nearest import nearest

_OPTIONS = (*MACHINE_OPTIONS, *RUN_OPTIONS)
_BY_KEY: dict[str, Option] = {option.key: option for option in _OPTIONS}
# Every spelling of an option is a noun as well: append= for params=, disk= for disks=.
_KEYS = {name.lstrip("-").replace("-", "_"): o.key for o in _OPTIONS for name in o.names if name[:2] == "--"}
_FAMILIES = frozenset(key for key, _ in PREFIXES.values())
_KEYS.update((key, key) for key in (*_BY_KEY, *_FAMILIES))
# What the plugin itself decides.
_RESERVED = {
    "dump_dtb", "log", "trace", "trace_out",
}  # fmt: skip
NOUNS = frozenset(_KEYS) - _RESERVED


class GuestConfig:
    """What a guest is to be like. Never changes: ``replace`` makes another one.

    Values are as on the command line; lists for what may be given many times.
    Raises ConfigError for a noun that does not exist.
    """

    def __init__(self, **nouns: object) -> None:
        self._values: dict[str, object] = {}
        for noun, value in nouns.items():
            check_noun(noun)
            self._values[_KEYS[noun]] = value

    def __getattr__(self, noun: str) -> object:
        if noun.startswith("_") or noun not in NOUNS:
            raise AttributeError(noun)
        return self._values.get(_KEYS[noun])

    def __repr__(self) -> str:
        return f"GuestConfig({', '.join(f'{key}={value!r}' for key, value in self._values.items())})"

    def replace(self, **nouns: object) -> GuestConfig:
        """This guest with other values for ``nouns``; None forgets a value."""
        changed = GuestConfig(**nouns)
        changed._values = {**self._values, **changed._values}
        changed._values = {key: value for key, value in changed._values.items() if value is not None}
        return changed

    def values(self) -> dict[str, object]:
        """The values by noun, as the command line's tables name them."""
        return dict(self._values)

    def words(self) -> list[str]:
        """The words of ``pyvmm run`` that ask for this guest."""
        given = {key: value for key, value in self._values.items() if value is not False}
        return COMMAND.words({key: _plain(key, value) for key, value in given.items()})


def check_noun(noun: str) -> None:
    """Raise ConfigError, with the nearest name, for what is not a noun."""
    if noun in _RESERVED:
        raise ConfigError(f"{noun} is the plugin's own business and cannot be given for a guest.")
    if noun not in NOUNS:
        raise ConfigError(f"a guest has no {noun!r}.{nearest(noun, NOUNS)}")


def from_markers(base: GuestConfig, markers: Iterable[Mapping[str, object]]) -> GuestConfig:
    """``base`` with the keywords of markers, innermost last."""
    for keywords in markers:
        base = base.replace(**keywords)
    return base


def _plain(key: str, value: object) -> object:
    """``value`` as the parser of the command line would have stored it."""
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    if key in _FAMILIES:
        return [str(item) for item in items]
    option = _BY_KEY[key]
    texts = [option.value if item is True else str(item) for item in items]
    if option.many:
        return texts
    return texts[0] if len(texts) == 1 else ",".join(map(str, texts))
