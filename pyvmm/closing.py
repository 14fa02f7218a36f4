# SPDX-License-Identifier: Apache-2.0
"""Closing several things of which one may refuse."""

from __future__ import annotations

from pyvmm.errors import PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def close_all(closers: Iterable[Callable[[], object]]) -> None:
    """Call every one of them, whatever one of them raises; then raise the first PyvmmError."""
    errors = []
    for close in closers:
        try:
            close()
        except PyvmmError as error:
            errors.append(error)
    if errors:
        raise errors[0]
