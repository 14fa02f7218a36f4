# SPDX-License-Identifier: Apache-2.0
"""Doing several things of which one may fail, and must not keep the others from being done."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def attempt_all(steps: Iterable[Callable[[], object]]) -> None:
    """Take every step, whatever one of them raises; then raise the first of those exceptions."""
    errors = []
    for step in steps:
        try:
            step()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]
