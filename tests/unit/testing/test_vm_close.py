# SPDX-License-Identifier: Apache-2.0
"""What a guest under test took is given back, whatever fails meanwhile."""

import errno
from types import SimpleNamespace

import pytest

from pyvmm.testing.config import GuestConfig
from pyvmm.testing.leases import Leases
from pyvmm.testing.vm import Frame, Vm

GiB = 1 << 30


class FullHost:
    name = "local"

    def prepare(self, name, folder, words):
        raise OSError(errno.ENOSPC, "No space left on device")

    def release(self, name, folder):
        raise OSError(errno.EMFILE, "Too many open files")


def test_memory_of_a_guest_is_given_back_when_its_sockets_cannot_be_removed(tmp_path):
    leases = Leases("local", 4 * GiB, 1, tmp_path)
    frame = Frame(
        place=FullHost(),
        leases=leases,
        sockets=tmp_path,
        scale=1,
        timeout=1,
        allow_panic=False,
        trace="",
        live=None,
    )
    vm = Vm("guest", GuestConfig(kernel="Image"), tmp_path / "guest", frame)
    with pytest.raises(OSError, match="No space left"):
        vm.start()
    vm._guest = SimpleNamespace(close=lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        vm.close()
    vm.close()
    Leases("local", 4 * GiB, 1, tmp_path).memory(GiB, 0)
