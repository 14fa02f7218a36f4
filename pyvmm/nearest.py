# SPDX-License-Identifier: Apache-2.0
"""Help with misspelt names."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """`` Did you mean X?`` for the known word nearest to ``word``, or nothing.

    The dashes that options begin with make no two of them alike.
    """
    import difflib

    bare = {name.lstrip("-"): name for name in sorted(known)}
    match = difflib.get_close_matches(word.lstrip("-"), bare, n=1)
    return f" Did you mean {bare[match[0]]}?" if match else ""
