# SPDX-License-Identifier: Apache-2.0
"""Which lines of a console come nearest to what was awaited there: a typing error shows at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

_MOST = 3
_LEAST = 0.6  # of a pattern that a line must have to be near it
_WIDTH = 400  # characters of a line that are looked at
_SYNTAX = re.compile(r"\\[AbBdDsSwWZ]|[\\^$.|?*+(){}\[\]]")


def near_lines(lines: Sequence[str], patterns: Iterable[str]) -> list[int]:
    """The numbers of at most three of ``lines``, in their order; of lines that are alike the later."""
    likeness = [0.0] * len(lines)
    for pattern in patterns:
        literal = _SYNTAX.sub("", pattern).lower()
        if not literal.strip():
            continue
        matcher = SequenceMatcher(b=literal, autojunk=False)
        for number, line in enumerate(lines):
            matcher.set_seq1(line[:_WIDTH].lower())
            shared = sum(block.size for block in matcher.get_matching_blocks() if block.size > 2)
            likeness[number] = max(likeness[number], shared / len(literal))
    near = [number for number in reversed(range(len(lines))) if likeness[number] >= _LEAST]
    return sorted(sorted(near, key=lambda number: -likeness[number])[:_MOST])
