# SPDX-License-Identifier: Apache-2.0
"""A lab host of the tests' own: its builds come from the user's cache, its sockets and state do not."""

from __future__ import annotations

import pytest

from pyvmm.lab import host, store


@pytest.fixture(scope="session")
def own_runtime(tmp_path_factory):
    """A runtime directory that no other host of this user is known in; nothing of it runs afterwards.

    The cache stays the user's for a pytest inside pytest too, whose HOME pytester moves.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        patch.setenv("XDG_CACHE_HOME", str(store.cache_dir().parent))
        yield
        host.stop_all()


@pytest.fixture
def lab(own_runtime):
    """The default lab host, running."""
    found = host.Lab()
    found.start()
    return found
