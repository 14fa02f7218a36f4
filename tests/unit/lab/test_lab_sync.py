# SPDX-License-Identifier: Apache-2.0
"""What of pyvmm goes to the lab host."""

import pytest

from pyvmm.errors import ConfigError, HostError
from pyvmm.lab import programs, sync

MODULE = "pyvmm/_native.abi3.so"


@pytest.fixture
def sent(monkeypatch):
    """The files that would be sent, as the build of the native module ends."""

    def what(build):
        monkeypatch.setattr(programs, "native", build)
        return dict(sync._own())

    return what


def test_native_module_is_the_one_built_for_the_lab(sent, tmp_path):
    assert sent(lambda: tmp_path)[MODULE] == tmp_path / MODULE


@pytest.mark.parametrize("refusal", [ConfigError("no zig"), HostError("it does not compile")])
def test_lab_does_without_a_native_module_that_cannot_be_built(sent, refusal):
    def build():
        raise refusal

    files = sent(build)
    assert MODULE not in files
    assert "pyvmm/nativerun.py" in files
