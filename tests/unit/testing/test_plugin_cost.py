# SPDX-License-Identifier: Apache-2.0
"""Every run of pytest loads the plugin: it must cost nothing to those that have no guests."""

import subprocess
import sys

LISTED = """
import sys

def pytest_unconfigure():
    print("loaded:", sorted(name for name in sys.modules if name.split(".")[0] in ("pyvmm", "pexpect")))
"""


def test_run_without_guests_loads_only_the_plugin_itself(pytester):
    pytester.makeconftest(LISTED)
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_subprocess("-s")
    assert "loaded: ['pyvmm', 'pyvmm.pytest_plugin']" in result.stdout.str()


def test_plugin_imports_nothing_that_pytest_has_not():
    code = "import sys, pytest; had = {*sys.modules}; import pyvmm.pytest_plugin; print({*sys.modules} - had)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert eval(done.stdout) == {"pyvmm", "pyvmm.pytest_plugin"}
