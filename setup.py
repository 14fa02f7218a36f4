# SPDX-License-Identifier: Apache-2.0
"""The optional native module; everything else about the package is in pyproject.toml.

pyvmm installs without a compiler and without cffi: it has libatomic to fall back on. So cffi is asked for
only where that cannot fail the installation: it is there already, or there is a compiler and what cffi
itself may have to be built from (no wheel of it exists for riscv64).
"""

import os
import shutil
import subprocess
import sysconfig

from setuptools import setup


def have_cffi():
    try:
        import cffi  # noqa: F401
    except ImportError:
        return False
    return True


def can_build():
    """Whether a C compiler works here that finds the headers of Python and of libffi."""
    compiler = os.environ.get("CC", "cc").split()
    if not shutil.which(compiler[0]):
        return False
    headers = "#include <Python.h>\n#include <ffi.h>\n"
    command = [*compiler, "-E", f"-I{sysconfig.get_paths()['include']}", "-xc", "-"]
    done = subprocess.run(command, input=headers, text=True, capture_output=True, check=False)
    return done.returncode == 0


if have_cffi():
    setup(cffi_modules=["pyvmm/_native_build.py:ffi"])
else:
    setup(setup_requires=["cffi>=1.15"] if can_build() else [])
