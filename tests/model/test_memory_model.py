# SPDX-License-Identifier: Apache-2.0
"""Guest memory against a naive model: one byte string, and for each page what kind it is."""

from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.errors import ConfigError, GuestAccessError
from pyvmm.memory import DEVICE, RAM, READ_ONLY, GuestMemory

BASE, PAGE, PAGES = 0x8000_0000, 4096, 16
END = BASE + PAGE * PAGES

banks = st.lists(
    st.tuples(st.integers(0, PAGES - 1), st.integers(1, 4), st.sampled_from([RAM, READ_ONLY, DEVICE])),
    max_size=6,
)
near_borders = st.builds(
    lambda page, delta: BASE + page * PAGE + delta, st.integers(-1, PAGES + 1), st.integers(-3, 3)
)
sizes = st.one_of(st.integers(-1, 8), st.integers(PAGE - 4, PAGE + 4), st.integers(0, END - BASE + 1))
accesses = st.lists(st.tuples(near_borders, sizes, st.booleans()), min_size=1, max_size=12)


class Model:
    """What memory should be."""

    def __init__(self):
        self.kinds = {}
        self.data = {}

    def add(self, page, count, kind):
        """Whether the bank fits between the others."""
        pages = range(page, page + count)
        if any(p in self.kinds for p in pages):
            return False
        self.kinds.update(dict.fromkeys(pages, kind))
        return True

    def allows(self, gpa, size, writable):
        """Whether every byte is there; for no bytes at all, whether there is memory on either side."""
        if size < 0:
            return False
        first, last = (gpa - BASE) // PAGE, (gpa - BASE + max(size, 1) - 1) // PAGE
        if size == 0:
            return any(self._usable((gpa - BASE - side) // PAGE, writable) for side in (0, 1))
        return all(self._usable(page, writable) for page in range(first, last + 1))

    def _usable(self, page, writable):
        kind = self.kinds.get(page)
        return kind is not None and not (writable and kind == READ_ONLY)

    def write(self, gpa, data):
        self.data.update({gpa + i: byte for i, byte in enumerate(data)})

    def read(self, gpa, size):
        return bytes(self.data.get(gpa + i, 0) for i in range(size))


@settings(max_examples=200, deadline=None)
@given(banks, accesses)
def test_memory_does_what_one_byte_string_would(layout, operations):
    model = Model()
    with ExitStack() as stack:
        memory = stack.enter_context(GuestMemory())
        for page, count, kind in layout:
            if model.add(page, count, kind):
                memory.add(BASE + page * PAGE, count * PAGE, kind=kind)
            else:
                with pytest.raises(ConfigError):
                    memory.add(BASE + page * PAGE, count * PAGE, kind=kind)
        for number, (gpa, size, writable) in enumerate(operations, 1):
            if not model.allows(gpa, size, writable):
                with pytest.raises(GuestAccessError):
                    memory.iovec([(gpa, size)], writable=writable)
                continue
            if writable:
                data = bytes([number]) * size
                memory.write(gpa, data)
                model.write(gpa, data)
            assert memory.read(gpa, size) == model.read(gpa, size)
            views = memory.iovec([(gpa, size)])
            assert b"".join(views) == model.read(gpa, size)
            for view in views:
                view.release()
