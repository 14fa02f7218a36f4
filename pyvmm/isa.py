# SPDX-License-Identifier: Apache-2.0
"""Which ISA extensions a guest gets, and how the device tree writes them down.

Extensions have the lower-case names of the ISA manual. What exists (``known``) and what this host offers
(``offered``) is handed in; nothing here talks to KVM.
"""

from __future__ import annotations

from pyvmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Without these there is no Linux guest.
REQUIRED = ("i", "m", "a")
#: What ``--cpu-type min`` keeps.
MINIMAL = (*REQUIRED, "f", "d", "c")
#: The hart that ``pyvmm dtb`` describes when no KVM is asked: what every RISC-V host with KVM can give.
DEFAULT = (*MINIMAL, "zicntr", "zicsr", "zifencei", "zihpm", "sstc")

# Order of single letters, and of the Z extensions' categories (ISA manual, naming conventions).
_LETTER_ORDER = "iemafdqlcbkjtpvnh"


class Selection:
    """What the user asked for: everything KVM offers or the minimum, with changes by name."""

    __slots__ = ("changes", "minimal")

    def __init__(self, minimal: bool = False, changes: Mapping[str, bool] | None = None) -> None:
        self.minimal = minimal
        self.changes = dict(changes or {})

    def wants(self, name: str, default: bool) -> bool:
        """Whether the guest shall have ``name``, which KVM gives it by ``default`` (or not)."""
        if name == "h":
            return False
        return self.changes.get(name, default and (not self.minimal or name in MINIMAL))

    def apply(self, offered: Mapping[str, bool]) -> Plan:
        """What to switch, given what KVM offers: name -> whether a fresh vCPU has it.

        Raises ConfigError for an extension that was asked for and is not offered.
        """
        missing = [name for name, wanted in self.changes.items() if wanted and name not in offered]
        if missing:
            raise ConfigError(
                f"KVM on this host does not offer {', '.join(missing)} to guests; "
                "leave it out of --isa and --cpu-type."
            )
        wanted = {name: self.wants(name, default) for name, default in offered.items()}
        writes = [(name, value) for name, value in wanted.items() if value != offered[name]]
        return Plan(writes, [name for name, value in wanted.items() if value])


class Plan:
    """The outcome: ``writes`` are (name, value) to try on every vCPU, ``names`` what the guest is told of."""

    __slots__ = ("names", "writes")

    def __init__(self, writes: Iterable[tuple[str, bool]], names: Iterable[str]) -> None:
        self.writes = list(writes)
        self.names = canonical(names)

    @staticmethod
    def refused(name: str, value: bool) -> str:
        """What to say when KVM refuses one of ``writes``.

        KVM cannot take most unprivileged extensions away: the guest is then only not told of it, which is all
        that a well-behaved guest needs, and the sentence says so. Raises ConfigError for a refused addition.
        """
        if value:
            raise ConfigError(f"KVM refuses to enable {name} on this host; leave +{name} out of --isa.")
        return f"KVM cannot turn {name} off on this host, so it is only left out of the device tree."


def select(isa: str, cpu_type: str, disabled: Iterable[str], known: Iterable[str]) -> Selection:
    """The selection that ``--isa``, ``--cpu-type`` and every ``--disable-EXT`` make, later ones winning.

    ``known`` is every extension that KVM has a name for. Raises ConfigError for anything else.
    """
    names = frozenset(known)
    kind, *added = _words(cpu_type)
    if kind not in ("min", "max"):
        raise ConfigError(f"--cpu-type takes max, or min,EXT,..., not {cpu_type!r}.")
    changes = {_known(name, names): True for name in added}
    for word in _words(isa):
        if word[:1] in ("+", "-"):
            changes[_known(word[1:], names)] = word[0] == "+"
        elif word != "host":
            raise ConfigError(f"--isa takes host, +EXT and -EXT, separated by commas, not {word!r}.")
    for name in disabled:
        changes[_known(name.lower(), names)] = False
    _check(changes)
    return Selection(kind == "min", changes)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.lower().split(",") if word.strip()] or [""]


def _known(name: str, known: frozenset[str]) -> str:
    if name in known:
        return name
    from pyvmm.nearest import nearest

    hint = nearest(name, known) or f" It knows {', '.join(sorted(known))}."
    raise ConfigError(f"KVM knows no ISA extension {name!r}.{hint}")


def _check(changes: dict[str, bool]) -> None:
    if changes.get("h"):
        raise ConfigError("A guest cannot have h, the hypervisor extension: KVM does not nest on RISC-V.")
    for name in REQUIRED:
        if changes.get(name) is False:
            raise ConfigError(f"The extension {name} cannot be turned off: no Linux guest runs without it.")


def canonical(names: Iterable[str]) -> list[str]:
    """``names`` in the ISA manual's order: single letters, Z by category and name, S, then X."""
    return sorted(names, key=_rank)


def _rank(name: str) -> tuple[int, int, str]:
    if len(name) == 1:
        return 0, _LETTER_ORDER.find(name), name
    if name[0] == "z":
        return 1, _LETTER_ORDER.find(name[1]), name
    return (2 if name[0] == "s" else 3), 0, name


def isa_string(names: Iterable[str]) -> str:
    """The deprecated single string (``rv64imafdc_zicsr_...``), which Linux before 6.7 needs."""
    ordered = canonical(names)
    letters = "".join(name for name in ordered if len(name) == 1)
    return "_".join([f"rv64{letters}", *(name for name in ordered if len(name) > 1)])
