# SPDX-License-Identifier: Apache-2.0
import pytest
from fakes.kernel import FakeKernel

from pyvmm.kvm.system import Kvm


@pytest.fixture
def machine():
    """Makes a machine on a fake kernel: ``vm = machine(script=...)``; the fake is ``vm.kernel.vm``."""
    opened = []

    def make(**options):
        kvm = Kvm(kernel=FakeKernel(**options))
        vm = kvm.create_vm()
        opened.extend([vm, kvm])
        return vm

    yield make
    for thing in opened:
        thing.close()
