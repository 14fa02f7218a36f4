# SPDX-License-Identifier: Apache-2.0
"""The reference says what the code says."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load():
    spec = importlib.util.spec_from_file_location("gen_reference", ROOT / "scripts/gen_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = load()
PAGES = GENERATOR.pages()


@pytest.mark.parametrize("name", PAGES)
def test_page_is_what_the_generator_writes(name):
    written = (ROOT / "docs/reference" / name).read_text()
    assert written == GENERATOR.whole(name, PAGES[name]), "run scripts/gen_reference.py"


def test_reference_links_every_page():
    index = (ROOT / "docs/README.md").read_text()
    missing = [name for name in PAGES if f"(reference/{name})" not in index]
    assert not missing
