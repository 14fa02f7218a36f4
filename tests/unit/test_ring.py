# SPDX-License-Identifier: Apache-2.0
import ctypes
import threading

import pytest

from pyvmm import native
from pyvmm import ring as ring_module
from pyvmm.errors import HostError
from pyvmm.ring import LIBATOMIC, NATIVE, PLAIN, Ring

WIDTHS = [16, 32]
PATTERN = {16: (0x1111, 0x2222, 0x3333), 32: (0x1111_1111, 0x2222_2222, 0x3333_3333)}
TYPES = {16: ctypes.c_uint16, 32: ctypes.c_uint32}


@pytest.fixture(params=[NATIVE, LIBATOMIC, PLAIN])
def ring(request):
    try:
        return Ring(request.param)
    except HostError as error:
        pytest.skip(f"{request.param}: {error}")


@pytest.fixture
def no_native(monkeypatch):
    monkeypatch.setattr(native, "FILE", "/nonexistent/_native.abi3.so")


@pytest.fixture
def no_libatomic(monkeypatch):
    monkeypatch.setattr(ring_module, "_LIBATOMIC_FILE", "libnothing.so")


@pytest.fixture(params=WIDTHS)
def words(request):
    """(bits, three words in a row, the address of the middle one)."""
    bits = request.param
    row = (TYPES[bits] * 3)(*PATTERN[bits])
    return bits, row, ctypes.addressof(row) + bits // 8


def test_backend_is_named_and_only_plain_python_is_unsafe(ring):
    assert ring.safe == (ring.backend != PLAIN)
    assert ring.backend in {NATIVE, LIBATOMIC, PLAIN}


def test_without_native_module_libatomic_is_used(no_native):
    assert Ring().backend == LIBATOMIC


def test_native_module_of_another_machine_is_passed_over(tmp_path, monkeypatch):
    alien = tmp_path / "_native.abi3.so"
    alien.write_bytes(b"\x7fELF" + bytes(60))
    monkeypatch.setattr(native, "FILE", str(alien))
    assert Ring().backend == LIBATOMIC


def test_without_any_safe_backend_it_says_what_to_install(no_native, no_libatomic):
    with pytest.raises(HostError, match=r"libnothing\.so is not installed.*libatomic1"):
        Ring()


def test_backend_asked_for_by_name_is_not_replaced_by_another(no_native):
    with pytest.raises(HostError, match=r"native module are not to be had here: .*_native"):
        Ring(NATIVE)


@pytest.mark.parametrize("edge", [0, 1, "half", "all"])
def test_store_then_load_gives_the_value_and_touches_nothing_else(ring, words, edge):
    bits, row, address = words
    value = {"half": 1 << (bits - 1), "all": (1 << bits) - 1}.get(edge, edge)
    getattr(ring, f"store_release{bits}")(address, value)
    assert getattr(ring, f"load_acquire{bits}")(address) == value
    assert getattr(ring, f"peer{bits}")(address) == value
    assert list(row) == [PATTERN[bits][0], value, PATTERN[bits][2]]


@pytest.mark.parametrize(
    ("operation", "before", "bits", "after"),
    [
        ("set_bits32", 0x8000_0001, 3, 0x8000_0003),
        ("set_bits32", 5, 0x8000_0000, 0x8000_0005),
        ("clear_bits32", 0x8000_0003, 1, 0x8000_0002),
        ("clear_bits32", 0xFFFF_FFFF, 0xFFFF_FFFF, 0),
        ("clear_bits32", 4, 3, 4),
    ],
)
def test_bits_change_in_one_word_and_it_is_returned_as_it_was(ring, operation, before, bits, after):
    row = (ctypes.c_uint32 * 3)(7, before, 7)
    assert getattr(ring, operation)(ctypes.addressof(row) + 4, bits) == before
    assert list(row) == [7, after, 7]


def test_rearm_stores_and_returns_the_16_bit_peer(ring, words):
    bits, row, address = words
    peer = ctypes.c_uint16(0xFEDC)
    value = (1 << bits) - 2
    assert getattr(ring, f"rearm{bits}")(address, value, ctypes.addressof(peer)) == 0xFEDC
    assert list(row) == [PATTERN[bits][0], value, PATTERN[bits][2]]


def test_rearm_of_the_peer_itself_sees_the_stored_value(ring):
    word = ctypes.c_uint16(5)
    assert ring.rearm16(ctypes.addressof(word), 6, ctypes.addressof(word)) == 6


@pytest.mark.parametrize("bits", WIDTHS)
def test_word_written_by_another_thread_is_never_seen_half_written(ring, bits):
    word = TYPES[bits](0)
    address = ctypes.addressof(word)
    ones = (1 << bits) - 1
    store, load = getattr(ring, f"store_release{bits}"), getattr(ring, f"load_acquire{bits}")
    done = threading.Event()

    def write():
        while not done.is_set():
            store(address, ones)
            store(address, 0)

    writer = threading.Thread(target=write)
    writer.start()
    seen = {load(address) for _ in range(20_000)}
    done.set()
    writer.join()
    assert seen <= {0, ones}
