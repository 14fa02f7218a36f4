# SPDX-License-Identifier: Apache-2.0
"""From raw figures to ratios: a table for people, and the same as data."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks import blk, net

Figures = Mapping[str, Mapping[str, Sequence[float]]]

SECONDS = (1.0, "s", 2)
MICROSECONDS = (1e-6, "µs", 2)
MEBIBYTES = (float(1 << 20), "MiB", 1)
A_SECOND = (1.0, "/s", 0)
KIBIBYTES_A_SECOND = (1024.0, "KiB/s", 1)
MEBIBYTES_A_SECOND = (float(1 << 20), "MiB/s", 1)


class Comparison:
    """One row: ``subject`` beside ``peer``, both names of figures of one measure.

    ``most`` is the largest figure (in ``unit``) and ``most_ratio`` the largest ratio to the peer that the
    project has set itself as a goal; None where there is no goal. ``peer_name`` is for people.
    """

    def __init__(
        self,
        title: str,
        measure: str,
        subject: str,
        peer: str,
        unit: tuple[float, str, int],
        *,
        peer_name: str = "",
        most: float | None = None,
        most_ratio: float | None = None,
    ) -> None:
        self.title = title
        self.measure = measure
        self.subject = subject
        self.peer = peer
        self.peer_name = peer_name or peer
        self.unit = unit
        self.most = most
        self.most_ratio = most_ratio

    def row(self, figures: Figures) -> dict[str, object]:
        """Medians in ``unit``, their ratio, and whether the goal is met (None without one)."""
        scale = self.unit[0]
        ours = [value / scale for value in figures[self.measure][self.subject]]
        theirs = [value / scale for value in figures[self.measure][self.peer]]
        value, peer_value = statistics.median(ours), statistics.median(theirs)
        return {
            "title": self.title,
            "unit": self.unit[1],
            "pyvmm": {"median": value, "least": min(ours), "most": max(ours), "runs": len(ours)},
            "peer": {"name": self.peer_name, "median": peer_value, "least": min(theirs), "most": max(theirs)},
            "ratio": value / peer_value,
            "goal": self._goal(),
            "met": self._met(value, value / peer_value),
        }

    def _goal(self) -> str:
        if self.most is not None:
            return f"at most {self.most:g} {self.unit[1]}"
        return "" if self.most_ratio is None else f"ratio at most {self.most_ratio:g}"

    def _met(self, value: float, ratio: float) -> bool | None:
        if self.most is not None:
            return value <= self.most
        return None if self.most_ratio is None else ratio <= self.most_ratio


_USUAL, _EARLY = "pyvmm, as usual", "pyvmm, log, early console"
_CARDS = {net.VHOST: "tap with vhost", net.TAP: "tap without vhost", net.USER: "passt (qemu: slirp)"}


def _load(measure: str, title: str, load: str, unit: tuple[float, str, int]) -> Comparison:
    """The same load on pyvmm and on QEMU: a rate, so more is better, and a ratio above 1 is in our favour."""
    return Comparison(title, measure, f"pyvmm, {load}", f"qemu, {load}", unit, peer_name="qemu")


COMPARISONS = (
    Comparison("exec to first KVM_RUN", "start-up", "pyvmm", "python3", SECONDS, most=1.0),
    Comparison("exec to first KVM_RUN", "start-up", "pyvmm", "qemu", SECONDS),
    Comparison("run, as usually called", "whole-run", _USUAL, "qemu, as usual", SECONDS, most_ratio=0.5),
    Comparison("run, quiet", "whole-run", "pyvmm, quiet", "qemu, quiet", SECONDS, most_ratio=0.5),
    Comparison("run, log by early console", "whole-run", _EARLY, "qemu, log, early console", SECONDS),
    Comparison("run, log by serial port", "whole-run", "pyvmm, log, serial", "qemu, log, serial", SECONDS),
    Comparison("MMIO store", "exits", "pyvmm, stores", "C, stores", MICROSECONDS, most_ratio=5.0),
    Comparison("MMIO load", "exits", "pyvmm, loads", "C, loads", MICROSECONDS, most_ratio=5.0),
    Comparison("memory without guest RAM", "memory", "pyvmm", "qemu", MEBIBYTES, most=25.0),
    *(_load("blk", load, load, A_SECOND) for load in (blk.RANDOM_READ, blk.DEEP_READ, blk.RANDOM_WRITE)),
    _load("blk", blk.SEQUENTIAL, blk.SEQUENTIAL, MEBIBYTES_A_SECOND),
    *(
        _load("net", f"TCP {card}, {way}", f"{kind}, {way}", MEBIBYTES_A_SECOND)
        for kind, card in _CARDS.items()
        for way in (net.SEND, net.RECEIVE)
    ),
    Comparison("console, 1 MiB", "console", "pyvmm", "qemu", MEBIBYTES_A_SECOND),
    Comparison("serial console, 128 KiB", "serial", "pyvmm", "qemu", KIBIBYTES_A_SECOND),
)


def rows(figures: Figures) -> list[dict[str, object]]:
    """A row for each comparison whose figures are there."""
    return [comparison.row(figures) for comparison in COMPARISONS if comparison.measure in figures]


def table(figures: Figures) -> str:
    """The rows as text, for a terminal or a document."""
    lines = [("measure", "pyvmm", "least..most", "peer", "", "least..most", "ratio", "goal", "")]
    lines += [_cells(one, one.row(figures)) for one in COMPARISONS if one.measure in figures]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cells(comparison: Comparison, row: dict[str, object]) -> tuple[str, ...]:
    _, unit, digits = comparison.unit
    ours, theirs = row["pyvmm"], row["peer"]
    assert isinstance(ours, dict)
    assert isinstance(theirs, dict)

    def figure(of: dict[str, float]) -> tuple[str, str]:
        spread = f"{of['least']:.{digits}f}..{of['most']:.{digits}f}"
        return f"{of['median']:.{digits}f} {unit}", spread

    verdict = {True: "met", False: "MISSED", None: ""}[row["met"]]  # type: ignore[index]
    return (
        comparison.title,
        *figure(ours),
        comparison.peer_name,
        *figure(theirs),
        f"{row['ratio']:.2f}",
        str(row["goal"]),
        verdict,
    )
