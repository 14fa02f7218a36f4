# SPDX-License-Identifier: Apache-2.0
import pytest
from fakes.kernel import FakeKernel
from fakes.run import Run, image

from pyvmm.config import MachineConfig


@pytest.fixture(name="image")
def kernel_file(tmp_path):
    """The smallest file that is a kernel."""
    path = tmp_path / "Image"
    path.write_bytes(image())
    return str(path)


@pytest.fixture
def run(image):
    """Makes a machine on a fake KVM. What ends none of its guests becomes a timeout, and fails the test."""
    made = []

    def make(script=(), *, kernel=None, kernel_file=image, **config):
        plain = {"console": "serial"}  # the guests here are too small for virtio
        config = MachineConfig(**{"kernel": kernel_file, "mem": "16M", "timeout": "20s", **plain, **config})
        made.append(Run(kernel or FakeKernel(script), config))
        return made[-1]

    yield make
    for it in made:
        it.finish()
