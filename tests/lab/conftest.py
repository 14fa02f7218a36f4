# SPDX-License-Identifier: Apache-2.0
"""A lab host of the tests' own: its builds come from the user's cache, its sockets and state do not."""

from __future__ import annotations

import os

import pytest

from pyvmm.lab import host


@pytest.fixture(scope="session")
def own_runtime(tmp_path_factory):
    """A runtime directory that no other host of this user is known in; nothing of it runs afterwards."""
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(tmp_path_factory.mktemp("run"))
    yield
    host.stop_all()
    if before is None:
        del os.environ["XDG_RUNTIME_DIR"]
    else:
        os.environ["XDG_RUNTIME_DIR"] = before


@pytest.fixture
def lab(own_runtime):
    """The default lab host, running."""
    found = host.Lab()
    found.start()
    return found
