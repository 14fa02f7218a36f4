# SPDX-License-Identifier: Apache-2.0
import ctypes
import threading

import pytest

from pyvmm.errors import HostError
from pyvmm.ring import Ring


@pytest.fixture
def ring():
    try:
        return Ring()
    except HostError as error:
        pytest.skip(str(error))


def test_absent_library_says_what_to_install():
    with pytest.raises(HostError, match=r"libnothing\.so is not installed.*libatomic1"):
        Ring("libnothing.so")


def test_backend_is_named(ring):
    assert ring.backend == "libatomic.so.1 through ctypes"


@pytest.mark.parametrize("value", [0, 1, 0x8000_0000, 0xFFFF_FFFF])
def test_store_then_load_gives_the_value_and_touches_nothing_else(ring, value):
    words = (ctypes.c_uint32 * 3)(0x1111_1111, 0x2222_2222, 0x3333_3333)
    address = ctypes.addressof(words) + 4
    ring.store_release32(address, value)
    assert ring.load_acquire32(address) == value
    assert list(words) == [0x1111_1111, value, 0x3333_3333]


def test_word_written_by_another_thread_is_never_seen_half_written(ring):
    word = ctypes.c_uint32(0)
    address = ctypes.addressof(word)
    done = threading.Event()

    def write():
        while not done.is_set():
            ring.store_release32(address, 0xFFFF_FFFF)
            ring.store_release32(address, 0)

    writer = threading.Thread(target=write)
    writer.start()
    seen = {ring.load_acquire32(address) for _ in range(20_000)}
    done.set()
    writer.join()
    assert seen <= {0, 0xFFFF_FFFF}
