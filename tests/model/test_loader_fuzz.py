# SPDX-License-Identifier: Apache-2.0
"""Whatever a file holds, it is loaded within its place or refused with a sentence."""

import gzip

from fakes import kernels
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.errors import ConfigError
from pyvmm.loader import Boot

MIB = 1 << 20
RAM_BASE, RAM_SIZE = 0x8000_0000, 16 * MIB
VIRTUAL = 1 << 63
IMAGE = kernels.image(b"code", pe_sections=[(0x1000, 4), (0, 4)])
SEEDS = [
    IMAGE,
    kernels.image(b"code"),
    gzip.compress(IMAGE),
    kernels.zboot(gzip.compress(IMAGE)),
    kernels.elf([(VIRTUAL, 0, b"text", 0x1000), (VIRTUAL + 0x1000, 0x1000, b"data", 0x1000)], VIRTUAL),
]


class CheckedMemory:
    """Guest memory that only checks where it is written to."""

    def __init__(self, start, end):
        self.start, self.end = start, end

    def write(self, gpa, data):
        assert self.start <= gpa
        assert gpa + len(data) <= self.end

    def read_file_into(self, gpa, fd, offset, size):
        self.write(gpa, range(size))
        return size


@st.composite
def spoilt_files(draw):
    """A good file, cut short or not, with some of its first bytes replaced."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    edits = st.tuples(st.integers(0, min(len(data), 256) - 1), st.integers(0, 255))
    for position, value in draw(st.lists(edits, max_size=6)):
        data[position] = value
    return bytes(data[: draw(st.one_of(st.none(), st.integers(1, len(data))))])


@given(data=st.one_of(spoilt_files(), st.binary(min_size=1, max_size=300)), firmware=st.booleans())
def test_any_file_is_loaded_within_its_place_or_refused(tmp_path_factory, data, firmware):
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(data)
    option = {"firmware" if firmware else "kernel": str(path)}
    try:
        with Boot(RAM_BASE, RAM_SIZE, **option) as boot:
            placement = boot.place(4096)
            boot.load(CheckedMemory(*placement.kernel), placement)
    except ConfigError as error:
        assert str(error).endswith(".")
        return
    start, end = placement.kernel
    assert RAM_BASE <= start < end <= RAM_BASE + RAM_SIZE
    assert start <= boot.entry < end
