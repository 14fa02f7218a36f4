# SPDX-License-Identifier: Apache-2.0
"""Tables for people, of ratios and of growth, for a terminal or a document."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import growth, sampler
from benchmarks.comparisons import MEBIBYTES, MICROSECONDS, SECONDS, Figures, Row, Spread, Unit, at, places

_VERDICTS = {True: "met", False: "MISSED", None: ""}
_BUSIEST = 14  # functions of a profile that are shown
_GROWTH_UNITS = {
    growth.START_UP: SECONDS,
    growth.PROMPT: SECONDS,
    growth.MEMORY: MEBIBYTES,
    growth.STORE: MICROSECONDS,
}


def table(rows: Sequence[Row]) -> str:
    """The rows as text; "" without any."""
    if not rows:
        return ""
    head = ("measure", "pyvmm", "least..most", "peer", "", "least..most", "ratio", "goal", "")
    return _aligned([head, *(_cells(row) for row in rows)])


def growth_table(figures: Figures) -> str:
    """For each axis the medians of pyvmm, a column for each size; "" when growth was not measured."""
    return "\n".join(
        _aligned([(axis, *map(str, sizes)), *lines])
        for place in places(figures)
        for axis, sizes in growth.AXES.items()
        if (lines := list(_growth_lines(_grown(figures, place), axis, sizes)))
    )


def profiles(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """What ``benchmarks.profile`` found, a block for each workload; "" when it was not asked."""
    return "\n\n".join(
        "\n".join(_profile(" ".join(filter(None, (name, place))), found))
        for place in places(figures)
        for name, found in figures.get(at("profile", place), {}).items()
    )


def _profile(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    seconds, looks = found["seconds"], found["looks"]
    states = [state for state in sampler.STATES if state != sampler.IDLE]
    cost = found["sampler's cpu seconds"] / seconds
    yield f"{name}: {seconds:.1f} s, {looks} looks; the sampler took {cost:.0%} of a CPU besides"
    for what in ("exits", "accesses"):
        counts = sorted(found[what].items(), key=lambda item: -item[1])
        yield f"  {what}: {', '.join(f'{key} {count}' for key, count in counts) or 'none'}"
    functions = found["threads"]
    total = {state: sum(counts.get(state, 0) for counts in functions.values()) for state in states}
    busiest = sorted(functions, key=lambda function: -_work(functions[function]))[:_BUSIEST]
    lines = [("all threads", total), *((function, functions[function]) for function in busiest)]
    shares = [
        (title, *(f"{100 * counts.get(state, 0) / max(looks, 1):.1f}" for state in states))
        for title, counts in lines
        if _work(counts) * 100 >= looks
    ]
    yield textwrap.indent(_aligned([("% of the time", *states), *shares]), "  ")


def _work(counts: Mapping[str, int]) -> int:
    """Looks at it that found neither the guest nor nothing to do."""
    return sum(count for state, count in counts.items() if state not in (sampler.GUEST, sampler.IDLE))


def _grown(figures: Figures, place: str) -> dict[str, Sequence[float]]:
    measures = (figures.get(at(measure, place), {}) for measure in ("growth", "exits"))
    return {name: found for measure in measures for name, found in measure.items()}


def _growth_lines(
    found: dict[str, Sequence[float]], axis: str, sizes: Sequence[int]
) -> Iterator[tuple[str, ...]]:
    for what, unit in _GROWTH_UNITS.items():
        names = [growth.name(axis, size, what) for size in sizes]
        if set(names) <= found.keys():
            medians = [statistics.median(found[name]) / unit.scale for name in names]
            yield (f"  {what}, {unit.name}", *(f"{value:.{unit.digits}f}" for value in medians))


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.title,
        *_figure(row.ours, row.unit),
        row.peer,
        *_figure(row.theirs, row.unit),
        f"{row.ratio:.2f}",
        row.goal_text,
        _VERDICTS[row.met],
    )


def _figure(spread: Spread, unit: Unit) -> tuple[str, str]:
    digits = unit.digits
    return f"{spread.median:.{digits}f} {unit.name}", f"{spread.least:.{digits}f}..{spread.most:.{digits}f}"


def _aligned(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
