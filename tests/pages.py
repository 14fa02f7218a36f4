# SPDX-License-Identifier: Apache-2.0
"""What the pages of the documentation show: blocks of code, and the command lines in them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def blocks(language):
    """(page, text) of every block in a language."""
    for page in PAGES:
        for block in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            yield str(page.relative_to(ROOT)), block


def console_lines():
    """(page, words after ``pyvmm``) of every ``$ pyvmm ...`` in a block marked as ``console``."""
    for page, block in blocks("console"):
        for line in block.splitlines():
            if match := re.match(r"\$ (?:[A-Z_]+=\S+ )*(?:sudo )?pyvmm (.*)", line):
                words = shlex.split(match[1].replace(" ...", ""), comments=True)
                yield page, words[: words.index("|")] if "|" in words else words
