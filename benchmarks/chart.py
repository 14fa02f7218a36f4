# SPDX-License-Identifier: Apache-2.0
"""The ratios as a picture (SVG): a bar a row, from level with the peer rightwards where better; log scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from benchmarks.comparisons import Row

_LINE, _TOP = 18, 44  # pixels: a row, and what is above the first
_TITLES, _BARS, _NOTES = 300, 420, 120  # pixels: widths of the columns
COLOURS = {True: "#2e8b57", False: "#c0392b", None: "#7f8c8d"}
_LEAST_SPAN = 4.0  # the scale reaches at least to this many times as good, and as bad
_HEAD = "How many times as good as the peer; | is the goal"


def svg(rows: Sequence[Row]) -> str:
    """The whole document."""
    width, height = _TITLES + _BARS + _NOTES, _TOP + _LINE * len(rows) + 8
    span = max([_LEAST_SPAN, *(_far(value) for row in rows for value in _values(row))])
    size = f'width="{width}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        _box(0, 0, width, height, "white"),
        _text(8, 16, _HEAD),
        *_scale(span, height),
    ]
    for number, row in enumerate(rows):
        lines += _row(row, _TOP + number * _LINE, span)
    return "\n".join([*lines, "</svg>", ""])


def _values(row: Row) -> list[float]:
    """The ratio and the goal, so that more is better."""
    found = [row.ratio] if row.goal is None else [row.ratio, row.goal]
    return found if row.unit.more else [1 / value for value in found]


def _far(value: float) -> float:
    return max(value, 1 / value)


def _x(value: float, span: float) -> float:
    return _TITLES + _BARS * (1 + math.log(value) / math.log(span)) / 2


def _scale(span: float, height: int) -> list[str]:
    """A line for each power of two; that of level with the peer is darker."""
    lines = []
    most = int(math.log2(span))
    for power in range(-most, most + 1):
        x = _x(2.0**power, span)
        lines.append(_box(x, _TOP - 6, 1, height - _TOP, "#cccccc" if power else "#333333"))
        lines.append(_text(x, _TOP - 10, f"{2.0**power:g}", anchor="middle"))
    return lines


def _row(row: Row, y: int, span: float) -> list[str]:
    better, *goals = _values(row)
    level, end = _x(1.0, span), _x(better, span)
    baseline = y + _LINE - 5
    return [
        _text(_TITLES - 10, baseline, row.title, anchor="end"),
        _box(min(level, end), y + 3, abs(end - level), _LINE - 6, COLOURS[row.met]),
        _text(_TITLES + _BARS + 10, baseline, f"{better:.2g} of {row.peer}"),
        *(_box(_x(goal, span) - 1, y + 1, 2, _LINE - 2, "black") for goal in goals),
    ]


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
