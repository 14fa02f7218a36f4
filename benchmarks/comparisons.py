# SPDX-License-Identifier: Apache-2.0
"""From raw figures to ratios: which figures are compared, and what the goals are."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks import blk, boot, memory, net

Figures = Mapping[str, Mapping[str, Sequence[float]]]


class Unit(NamedTuple):
    """``scale``: what one of it is in the raw figures' unit. ``more`` is better, but for costs."""

    scale: float
    name: str
    digits: int
    more: bool = False


SECONDS = Unit(1.0, "s", 2)
MICROSECONDS = Unit(1e-6, "µs", 2)
MEBIBYTES = Unit(float(1 << 20), "MiB", 1)
A_SECOND = Unit(1.0, "/s", 0, more=True)
KIBIBYTES_A_SECOND = Unit(1024.0, "KiB/s", 1, more=True)
MEBIBYTES_A_SECOND = Unit(float(1 << 20), "MiB/s", 1, more=True)
# lkvm is pyvmm's own class: level with it is the goal of every ratio to it.
_LKVM_RATIO = 1.0


class Spread(NamedTuple):
    """Some runs of one program, in a unit."""

    median: float
    least: float
    most: float
    runs: int

    @classmethod
    def of(cls, figures: Sequence[float], unit: Unit) -> Spread:
        values = [figure / unit.scale for figure in figures]
        return cls(statistics.median(values), min(values), max(values), len(values))


class Row(NamedTuple):
    """One line of the table. ``goal`` is a ratio (None without one), ``goal_text`` says it as it was set."""

    title: str
    unit: Unit
    ours: Spread
    peer: str
    theirs: Spread
    goal: float | None
    goal_text: str

    @property
    def ratio(self) -> float:
        return self.ours.median / self.theirs.median

    @property
    def met(self) -> bool | None:
        """None without a goal."""
        if self.goal is None:
            return None
        return self.ratio >= self.goal if self.unit.more else self.ratio <= self.goal

    def data(self) -> dict[str, object]:
        """The row for JSON."""
        return {
            "title": self.title,
            "unit": self.unit.name,
            "pyvmm": self.ours._asdict(),
            "peer": {"name": self.peer, **self.theirs._asdict()},
            "ratio": self.ratio,
            "goal": self.goal_text,
            "met": self.met,
        }


class Comparison(NamedTuple):
    """pyvmm beside the best of ``peers``: one figure of a measure ("" where it has but one).

    The goal is ``limit``, in ``unit``, or else ``ratio``, to the peer.
    """

    title: str
    measure: str
    figure: str
    unit: Unit
    ratio: float | None = None
    limit: float | None = None
    peers: Sequence[str] = ("qemu", "lkvm")

    def row(self, figures: Figures, place: str = "") -> Row:
        """``place`` is the host, where that is not the usual one: figures of it are named after it."""
        found = figures[at(self.measure, place)]
        spreads = {
            program: Spread.of(found[name], self.unit)
            for program in ("pyvmm", *self.peers)
            if (name := ", ".join(filter(None, (program, self.figure)))) in found
        }
        ours = spreads.pop("pyvmm")
        best = max if self.unit.more else min
        peer = best(spreads, key=lambda program: spreads[program].median)
        title = ", ".join(filter(None, (self.title, place)))
        return Row(title, self.unit, ours, peer, spreads[peer], *self._goal(peer, spreads[peer].median))

    def _goal(self, peer: str, theirs: float) -> tuple[float | None, str]:
        most = "at least" if self.unit.more else "at most"
        if self.limit is not None:
            return self.limit / theirs, f"{most} {self.limit:g} {self.unit.name}"
        if self.ratio is None:
            return None, ""
        ratio = _LKVM_RATIO if peer == "lkvm" else self.ratio
        return ratio, f"ratio {most} {ratio:g}"


def at(measure: str, place: str) -> str:
    """What the figures of a measure are called at a place."""
    return f"{measure} on {place}" if place else measure


_CARDS = {net.VHOST: "tap with vhost", net.TAP: "tap without vhost", net.USER: "passt (qemu: slirp)"}
_CARD_RATIOS = {net.VHOST: 1.0, net.TAP: 0.8, net.USER: None}
_RUNS = {
    boot.USUAL: "as usually called",
    boot.QUIET_RUN: "quiet",
    boot.EARLY_LOG: "log by early console",
    boot.SERIAL_LOG: "log by serial port",
}

COMPARISONS = (
    Comparison("exec to first KVM_RUN", "start-up", "", SECONDS, limit=0.7),
    Comparison("exec to first KVM_RUN", "start-up", "", SECONDS, peers=("python3",)),
    *(
        Comparison(f"run to {end}, {title}", "whole-run", f"{run}, {end}", SECONDS, ratio=0.4)
        for end in (boot.USER_SPACE, boot.POWER_OFF)
        for run, title in _RUNS.items()
    ),
    Comparison(f"{boot.AT_ONCE} runs at once, quiet", "many", "", SECONDS, ratio=1.0),
    Comparison("MMIO store", "exits", "stores", MICROSECONDS, ratio=2.0, peers=("C",)),
    Comparison("MMIO load", "exits", "loads", MICROSECONDS, ratio=2.0, peers=("C",)),
    Comparison("memory without guest RAM", "memory", "", MEBIBYTES, limit=20.0),
    Comparison("memory, each further guest", "memory", memory.FURTHER, MEBIBYTES, limit=6.0),
    Comparison("CPU time of an idle minute", "idle", "", SECONDS, ratio=1.0),
    *(
        Comparison(
            f"{load}, {transport}",
            "blk",
            f"{transport}, {load}",
            MEBIBYTES_A_SECOND if load == blk.SEQUENTIAL else A_SECOND,
            ratio=1.0,
        )
        for transport in blk.TRANSPORTS
        for load in blk.LOADS
    ),
    *(
        Comparison(f"TCP {card}, {way}", "net", f"{kind}, {way}", MEBIBYTES_A_SECOND, _CARD_RATIOS[kind])
        for kind, card in _CARDS.items()
        for way in (net.SEND, net.RECEIVE)
    ),
    *(
        Comparison(f"TCP {_CARDS[kind]}, requests", "net", f"{kind}, {net.REQUESTS}", A_SECOND, ratio=1.0)
        for kind in (net.VHOST, net.TAP)
    ),
    Comparison("console, 1 MiB", "console", "", MEBIBYTES_A_SECOND, ratio=1.0),
    Comparison("serial console, 128 KiB", "serial", "", KIBIBYTES_A_SECOND, ratio=1.0),
)


def rows(figures: Figures) -> list[Row]:
    """A row for each comparison whose figures are there, one place after the other."""
    return [
        comparison.row(figures, place)
        for place in places(figures)
        for comparison in COMPARISONS
        if at(comparison.measure, place) in figures
    ]


def places(figures: Figures) -> list[str]:
    """Where they were measured, the usual places ("") first."""
    return sorted({name.partition(" on ")[2] for name in figures})
