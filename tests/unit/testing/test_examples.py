# SPDX-License-Identifier: Apache-2.0
"""The suites of examples/, as far as no guest is needed for it: CI runs them with real ones."""

import shutil
from pathlib import Path

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_fixtures_of_the_examples_fit_together(suite):
    shutil.copytree(EXAMPLES, suite.path / "examples")
    # With ``console`` and ``guest`` alone, guests are asked for only when a test runs.
    result = suite.pytester.runpytest_subprocess("--setup-plan", "examples")
    assert result.ret == 0
    assert "error" not in result.parseoutcomes()
