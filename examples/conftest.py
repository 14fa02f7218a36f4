# SPDX-License-Identifier: Apache-2.0
"""Debian's kernels as guests; for kernels of your own there are --vmm-kernel and --vmm-initrd."""

import pytest

from pyvmm.lab import guests


@pytest.fixture(scope="session")
def with_modules(vmm_config):
    """The guest with Debian's modules in its initramfs."""
    return vmm_config.replace(kernel=guests.kernel(), initrd=guests.initrd(full=True), mem="512M")
