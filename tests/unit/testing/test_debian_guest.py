# SPDX-License-Identifier: Apache-2.0
"""The guest of tests that name no kernel."""

import pytest

from pyvmm.testing.config import GuestConfig
from pyvmm.testing.session import with_program


@pytest.fixture(autouse=True)
def debian(monkeypatch):
    """Debian's guest by name only."""
    monkeypatch.setattr("pyvmm.lab.guests.kernel", lambda progress: "/Image")
    monkeypatch.setattr(
        "pyvmm.lab.guests.initrd", lambda full, progress: "/large.cpio" if full else "/small.cpio"
    )


def test_devices_have_their_drivers():
    found = with_program(GuestConfig(vsock="auto", append="quiet")).values()
    assert (found["initrd"], found["params"], found["mem"]) == ("/large.cpio", "drivers=all quiet", "512M")


@pytest.mark.parametrize("nouns", [{}, {"rng": False}, {"ports": ["x,unix=/x"]}])
def test_guest_without_devices_that_need_drivers_is_the_small_one(nouns):
    assert with_program(GuestConfig(**nouns)).values() == {
        **nouns,
        "kernel": "/Image",
        "initrd": "/small.cpio",
    }


@pytest.mark.parametrize("nouns", [{"kernel": "mine"}, {"firmware": "u-boot"}])
def test_program_of_the_users_is_left_alone(nouns):
    config = GuestConfig(rng=True, **nouns)
    assert with_program(config) is config
