# SPDX-License-Identifier: Apache-2.0
"""Runs its arguments in the default lab host: the client that the tests kill."""

import sys

from pyvmm.lab.host import Lab

sys.exit(Lab().run(sys.argv[1:]))
