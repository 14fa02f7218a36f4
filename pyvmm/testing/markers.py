# SPDX-License-Identifier: Apache-2.0
"""Markers are checked when tests are collected: a misspelt keyword must not pass for no wish at all."""

from __future__ import annotations

import pytest

from pyvmm.errors import ConfigError
from pyvmm.nearest import nearest
from pyvmm.testing.config import check_noun
from pyvmm.testing.host import check_requirement

_MARKERS = ("vmm", "vmm_allow_panic", "vmm_requires", "vmm_timeout")


def check(node: pytest.Item | pytest.Collector) -> None:
    """Look at all markers of a test. A wrong one is an error of the collection."""
    for mark in node.iter_markers():
        if mark.name.startswith("vmm"):
            try:
                _check(mark)
            except ConfigError as error:
                sentence = f"@pytest.mark.{mark.name} of {node.name}: {error}"
                raise pytest.fail.Exception(sentence, pytrace=False) from None


def _check(mark: pytest.Mark) -> None:
    if mark.name not in _MARKERS:
        raise ConfigError(f"there is no such marker.{nearest(mark.name, _MARKERS)}")
    if mark.name == "vmm_timeout":
        if len(mark.args) != 1 or mark.kwargs or not _is_seconds(mark.args[0]):
            raise ConfigError("it takes one number of seconds.")
        return
    if mark.args:
        raise ConfigError("it takes keywords only.")
    for keyword in mark.kwargs:
        if mark.name == "vmm":
            check_noun(keyword)
        elif mark.name == "vmm_requires":
            check_requirement(keyword, mark.kwargs[keyword])
        else:
            raise ConfigError("it takes nothing.")


def _is_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
