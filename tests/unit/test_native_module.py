# SPDX-License-Identifier: Apache-2.0
"""The tests of the native module say that they were skipped where it is not; here is where it must be."""

import os
import shutil
import sysconfig

import pytest

from pyvmm import native


def test_native_module_is_there_where_it_can_be_compiled():
    headers = os.path.join(sysconfig.get_path("include"), "Python.h")
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if not compiler or not os.path.exists(headers):
        pytest.skip("there is no C compiler, or no headers of Python's")
    assert os.path.exists(native.FILE)
