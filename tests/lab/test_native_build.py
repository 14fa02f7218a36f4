# SPDX-License-Identifier: Apache-2.0
"""The native module as the lab has it: compiled by zig, with no headers of Python's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.lab.programs import native

TESTS = Path(__file__).parent.parent
PLUGIN = """
from pyvmm import native
native.FILE = {path!r}
"""
USED = """
from pyvmm import native, nativerun, ring
from pyvmm.devices import nativeplic
from pyvmm.devices.virtio import nativequeue
names = nativerun.MAKER, nativequeue.MAKER, nativequeue.FRAMES_MAKER, nativeplic.ANSWER
print(ring.Ring().backend, all(map(native.address, names)))
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the tests must be able to load it")
def test_module_built_without_headers_passes_the_tests_of_the_other(tmp_path):
    path = native("x86_64") / "pyvmm/_native.abi3.so"
    (tmp_path / "headerless.py").write_text(PLUGIN.format(path=str(path)))
    files = ["unit/test_nativerun.py", "unit/test_runner.py", "unit/test_ring.py"]
    files += ["unit/devices/virtio/test_virtio_nativequeue.py", "model/test_queue_twins.py"]
    files += ["unit/devices/virtio/test_virtio_net.py", "model/test_frame_twins.py"]
    files += ["unit/devices/test_plic.py", "unit/devices/test_nativeplic.py", "model/test_plic_twins.py"]
    files += ["model/test_exit_twins.py", "model/test_fuzz_targets.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "headerless", *files]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.lab
def test_lab_host_uses_the_module(lab):
    with lab.popen(["python3", "-P", "-c", USED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.read() == "native module True\n"
