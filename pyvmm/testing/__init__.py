# SPDX-License-Identifier: Apache-2.0
"""Guests in tests: what the fixtures of pyvmm's pytest plugin are made of (docs/howto/pytest.md)."""

from __future__ import annotations
