# SPDX-License-Identifier: Apache-2.0
"""For tests of the native module, which is not everywhere: unit/test_native_module.py says where it must."""

import os

import pytest

from pyvmm import native
from pyvmm.ring import NATIVE, PLAIN

needs_native = pytest.mark.skipif(not os.path.exists(native.FILE), reason="the native module was not built")
#: Parameters: what works a virtqueue.
BACKENDS = [pytest.param(PLAIN, id="python"), pytest.param(NATIVE, id="c", marks=needs_native)]
