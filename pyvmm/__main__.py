# SPDX-License-Identifier: Apache-2.0
"""``python -m pyvmm``."""

import sys

from pyvmm.cli import main

sys.exit(main())
