# SPDX-License-Identifier: Apache-2.0
"""Options as data, and the parser over them.

Not argparse: importing it costs 0.4 s on an emulated RISC-V host, as much as the interpreter itself
(docs/adr/0004-own-option-parser.md). Help, the man page and completion read the same tables.
"""

from __future__ import annotations

import os

from pyvmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class UsageError(ConfigError):
    """The command line itself is wrong."""


class HelpRequested(Exception):
    """``--help`` was given."""


class Option:
    """One option of a command.

    ``names`` are its spellings (the first long one is the canonical one); ``metavar`` is None for a flag;
    ``key`` is where the value goes in the parsed dict; ``choices`` restricts it; ``many`` collects a list;
    ``value`` is what a flag stores. ``optional`` makes a flag take a value as well, after ``=`` only.
    """

    __slots__ = ("choices", "group", "help", "key", "many", "metavar", "names", "optional", "value")

    def __init__(
        self,
        *names: str,
        key: str,
        help: str,
        metavar: str | None = None,
        group: str = "Options",
        choices: tuple[str, ...] = (),
        many: bool = False,
        value: object = True,
        optional: str | None = None,
    ) -> None:
        self.names = names
        self.key = key
        self.help = help
        self.metavar = metavar
        self.group = group
        self.choices = choices
        self.many = many
        self.value = value
        self.optional = optional

    @property
    def long(self) -> str:
        """The canonical spelling."""
        return next((name for name in self.names if name.startswith("--")), self.names[0])

    def usage(self) -> str:
        """All spellings, and the value: ``-m, --mem SIZE``."""
        names = ", ".join(self.names)
        if self.optional is not None:
            return f"{names}[={self.optional}]"
        value = "|".join(self.choices) or self.metavar
        return f"{names} {value}" if value else names

    def words(self, value: object) -> list[str]:
        """The command line that stores ``value``: none for a flag that is off."""
        values = value if isinstance(value, list) else [] if value is False else [value]
        return [self.long if one == self.value else f"{self.long}={one}" for one in values]

    def store(self, values: dict[str, object], spelling: str, text: str | None) -> None:
        """Put the option's value into ``values``. Raises UsageError for a value not among the choices."""
        if self.choices and text is not None and text not in self.choices:
            from pyvmm.nearest import nearest

            known = ", ".join(self.choices)
            hint = nearest(text, self.choices)
            raise UsageError(f"{spelling} takes one of {known}, not {text!r}.{hint}")
        value = self.value if text is None else text
        if self.many:
            held = values.setdefault(self.key, [])
            assert isinstance(held, list)
            held.append(value)
        else:
            values[self.key] = value


class Command:
    """A subcommand: its options, at most one kind of positional argument, and what it refuses so far.

    ``positional`` is (key, METAVAR) or None; ``arguments`` shows several (``NAME [SIZE]``), which go into
    the list ``arguments``, and may be negative numbers. ``rest`` names the key that takes everything after
    ``--``, where there must be something then.
    ``refused`` maps option spellings that are understood but not yet available to a sentence.
    """

    __slots__ = ("arguments", "name", "options", "positional", "prefixes", "refused", "rest", "summary")

    def __init__(
        self,
        name: str,
        summary: str,
        options: Iterable[Option] = (),
        *,
        positional: tuple[str, str] | None = None,
        arguments: str = "",
        rest: str | None = None,
        refused: dict[str, str] | None = None,
        prefixes: dict[str, tuple[str, str]] | None = None,
    ) -> None:
        self.name = name
        self.summary = summary
        self.options = tuple(options)
        self.positional = positional
        self.arguments = arguments
        self.rest = rest
        self.refused = refused or {}
        #: spelling prefix -> key and help: families such as ``--disable-EXT``
        self.prefixes = prefixes or {}

    def parse(self, argv: Sequence[str]) -> dict[str, object]:
        """Values by key. Raises UsageError with one sentence, HelpRequested for ``-h`` and ``--help``."""
        by_name = {name: option for option in self.options for name in option.names}
        values: dict[str, object] = {}
        self._check_rest(argv)
        words = iter(argv)
        before = ""
        for word in words:
            if word == "--":
                self._rest(values, words)
            elif word in ("-h", "--help"):
                raise HelpRequested
            elif not word.startswith("-") or word == "-" or (self.arguments and word[1].isdigit()):
                _check_stray(by_name.get(before), before, word)
                self._positional(values, word)
            else:
                self._option(values, by_name, word, words)
            before = word
        return values

    def _check_rest(self, argv: Sequence[str]) -> None:
        """First of all: what is wrong with a command taken for options would not tell what is missing."""
        if self.rest is None or "--" in argv[:-1] or {"-h", "--help"} & {*argv}:
            return
        if argv and self.positional is None and not argv[0].startswith("-"):
            import shlex

            meant = shlex.join(argv)
            raise UsageError(f"The {self.rest} comes after --: pyvmm {self.name} -- {meant}")
        raise UsageError(f"pyvmm {self.name} needs a {self.rest} to run, after --: {self.usage()}")

    def _rest(self, values: dict[str, object], words: Iterable[str]) -> None:
        """What follows ``--``: a command of its own, or arguments that may begin with a dash."""
        if self.rest is not None:
            values[self.rest] = list(words)
        else:
            for word in words:
                self._positional(values, word)

    def _positional(self, values: dict[str, object], word: str) -> None:
        if self.arguments:
            held = values.setdefault("arguments", [])
            assert isinstance(held, list)
            held.append(word)
            return
        if self.positional is None:
            raise UsageError(
                f"pyvmm {self.name} takes no argument, but got {word!r}. See pyvmm {self.name} --help."
            )
        key, metavar = self.positional
        if key in values:
            raise UsageError(f"{metavar} was given twice: {values[key]!r} and {word!r}.")
        values[key] = word

    def _option(
        self, values: dict[str, object], by_name: dict[str, Option], word: str, words: Iterable[str]
    ) -> None:
        spelling, equals, inline = word.partition("=")
        text: str | None = inline if equals else None
        option = by_name.get(spelling)
        # -kernel is QEMU's way to write --kernel, and nobody's to write -k ernel.
        if option is None and word[:2] in by_name and f"-{spelling}" not in by_name:
            spelling, text = word[:2], word[2:]  # -m512
            option = by_name[spelling]
        if option is None:
            self._unlisted(values, by_name, word)
        elif self.positional is not None and option.key == self.positional[0] and option.key in values:
            raise UsageError(f"{self.positional[1]} was given twice: {values[option.key]!r} and {spelling}.")
        elif option.metavar is None:
            if text is not None and option.optional is None:
                raise UsageError(f"{spelling} takes no value, but got {text!r}.")
            option.store(values, spelling, text)
        else:
            if text is None:
                text = self._next(option, spelling, by_name, words)
            option.store(values, spelling, text)

    def _next(self, option: Option, spelling: str, by_name: dict[str, Option], words: Iterable[str]) -> str:
        """The word after an option, which is its value unless it is an option as well."""
        word = next(iter(words), None)
        if word is None:
            raise UsageError(f"{spelling} needs a value: {spelling} {option.metavar}.")
        name = word.partition("=")[0]
        if name in (*by_name, *self.refused, "--", "-h", "--help") or name.startswith((*self.prefixes,)):
            raise UsageError(
                f"{spelling} needs a value, and {word} is an option; "
                f"write {option.long}={word} if it is meant."
            )
        return word

    def _unlisted(self, values: dict[str, object], by_name: dict[str, Option], word: str) -> None:
        spelling, equals, _ = word.partition("=")
        if spelling in self.refused:
            raise UsageError(self.refused[spelling])
        for prefix, (key, _) in self.prefixes.items():
            if spelling.startswith(prefix) and len(spelling) > len(prefix) and not equals:
                held = values.setdefault(key, [])
                assert isinstance(held, list)
                held.append(spelling[len(prefix) :])
                return
        from pyvmm.nearest import nearest

        hint = nearest(spelling, by_name)
        raise UsageError(f"pyvmm {self.name} has no option {spelling}.{hint} See pyvmm {self.name} --help.")

    def words(self, values: Mapping[str, object]) -> list[str]:
        """A command line that is parsed to ``values``; keys that no option has are left out."""
        by_key = {option.key: option for option in self.options if option.key in values}
        words = [word for key, option in by_key.items() for word in option.words(values[key])]
        for prefix, (key, _) in self.prefixes.items():
            held = values.get(key, [])
            assert isinstance(held, list)
            words += [prefix + name for name in held]
        if self.rest is not None and self.rest in values:
            rest = values[self.rest]
            assert isinstance(rest, list)
            words += ["--", *rest]
        return words

    def usage(self) -> str:
        """How it is called."""
        words = f"pyvmm {self.name} [options]"
        if self.positional:
            words += f" [{self.positional[1]}]"
        if self.arguments:
            words += f" {self.arguments}"
        if self.rest:
            words += f" -- {self.rest.upper()}..."
        return words

    def help(self) -> str:
        """The text of ``--help``."""
        lines = [f"usage: {self.usage()}", "", self.summary]
        groups: dict[str, list[Option]] = {}
        for option in self.options:
            groups.setdefault(option.group, []).append(option)
        for group, options in groups.items():
            lines += ["", f"{group}:"]
            for option in options:
                lines += _help_lines(option.usage(), option.help)
        if self.prefixes:
            lines += ["", "Extensions:"]
        for prefix, (_, text) in self.prefixes.items():
            lines += _help_lines(f"{prefix}EXT", text)
        return "\n".join(lines) + "\n"


def _check_stray(option: Option | None, spelling: str, word: str) -> None:
    """Raise UsageError for ``word``, directly after ``spelling``, if it is meant as an optional value."""
    if option is None or option.optional is None or os.path.exists(word):
        return
    if word in (option.choices or (word,)):
        raise UsageError(
            f"There is no file {word}; if that belongs to {spelling}, write {option.long}={word}."
        )


def _help_lines(usage: str, text: str) -> list[str]:
    left = f"  {usage}"
    if len(left) > 30:
        return [left, " " * 32 + text]
    return [f"{left:<32}{text}"]
