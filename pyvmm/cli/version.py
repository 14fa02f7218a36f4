# SPDX-License-Identifier: Apache-2.0
"""``pyvmm version``."""

from __future__ import annotations

import os
import sys

from pyvmm import __version__
from pyvmm.cli.parser import Command, Option

COMMAND = Command(
    "version",
    "The version of pyvmm and what it runs on.",
    (Option("--json", key="json", help="as one JSON object"),),
)


def main(words: list[str]) -> int:
    """Print it."""
    values = COMMAND.parse(words)
    host = os.uname()
    facts = {
        "pyvmm": __version__,
        "python": sys.version.split(maxsplit=1)[0],
        "kernel": f"{host.sysname} {host.release}",
        "machine": host.machine,
    }
    if values.get("json"):
        import json

        print(json.dumps(facts))
    else:
        print(f"pyvmm {facts['pyvmm']} (Python {facts['python']}, {facts['kernel']}, {facts['machine']})")
    return 0
