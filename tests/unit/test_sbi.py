# SPDX-License-Identifier: Apache-2.0
import pytest

from pyvmm.errors import GuestAccessError
from pyvmm.sbi import (
    ERR_INVALID_PARAM,
    ERR_NOT_SUPPORTED,
    EXT_BASE,
    EXT_DBCN,
    EXT_SUSP,
    SUCCESS,
    Sbi,
    call_name,
)

BASE, SIZE = 0x8000_0000, 0x1000
WRITE, READ, WRITE_BYTE = 0, 1, 2


class Memory:
    def __init__(self):
        self.data = bytearray(SIZE)

    def _at(self, gpa, n):
        if not (gpa >= BASE and gpa + n <= BASE + SIZE):
            raise GuestAccessError("outside")
        return gpa - BASE

    def read(self, gpa, n):
        at = self._at(gpa, n)
        return bytes(self.data[at : at + n])

    def write(self, gpa, data):
        at = self._at(gpa, len(data))
        self.data[at : at + len(data)] = data


class Console:
    def __init__(self):
        self.output = b""
        self.input = b""
        self.waits = 0
        self.full = False

    def write(self, data):
        self.output += data
        return self._wait if self.full else None

    def _wait(self):
        self.waits += 1

    def read(self, n):
        taken, self.input = self.input[:n], self.input[n:]
        return taken


@pytest.fixture
def memory():
    return Memory()


@pytest.fixture
def console():
    return Console()


@pytest.fixture
def suspended():
    return []


@pytest.fixture
def sbi(memory, console, suspended):
    return Sbi(memory, console.write, console.read, lambda: suspended.append(True))


def dbcn(sbi, function, *args):
    return sbi.call(EXT_DBCN, function, (*args, 0, 0, 0, 0, 0, 0)[:6])


def test_console_write_prints_guest_memory(sbi, memory, console):
    memory.write(BASE + 8, b"hello")
    assert dbcn(sbi, WRITE, 5, BASE + 8) == (SUCCESS, 5)
    assert console.output == b"hello"


def test_console_write_of_nothing_succeeds(sbi, console):
    assert dbcn(sbi, WRITE, 0, 0) == (SUCCESS, 0)
    assert console.output == b""


def test_console_write_waits_when_the_console_is_full(sbi, console):
    console.full = True
    dbcn(sbi, WRITE, 1, BASE)
    assert console.waits == 1


def test_console_read_fills_guest_memory_with_what_there_is(sbi, memory, console):
    console.input = b"typed"
    assert dbcn(sbi, READ, 64, BASE + 4) == (SUCCESS, 5)
    assert memory.read(BASE + 4, 5) == b"typed"
    assert dbcn(sbi, READ, 64, BASE + 4) == (SUCCESS, 0)


def test_console_read_to_a_bad_address_takes_no_input(sbi, console):
    console.input = b"typed"
    assert dbcn(sbi, READ, 64, BASE + SIZE - 8) == (ERR_INVALID_PARAM, 0)
    assert console.input == b"typed"


@pytest.mark.parametrize("function", [WRITE, READ])
@pytest.mark.parametrize(
    ("count", "low", "high"),
    [(1, 0, 0), (2, BASE + SIZE - 1, 0), (1, BASE, 1), (1 << 64, BASE, 0), (8, (1 << 64) - 4, 0)],
)
def test_console_call_with_a_bad_range_is_an_invalid_parameter(sbi, console, function, count, low, high):
    assert dbcn(sbi, function, count, low, high) == (ERR_INVALID_PARAM, 0)
    assert console.output == b""


def test_console_write_byte_prints_the_low_byte(sbi, console):
    assert dbcn(sbi, WRITE_BYTE, 0x1FF41) == (SUCCESS, 0)
    assert console.output == b"A"


def test_unknown_console_function_is_not_supported(sbi):
    assert dbcn(sbi, 3, 0)[0] == ERR_NOT_SUPPORTED


def test_suspend_parks_and_succeeds(sbi, suspended):
    assert sbi.call(EXT_SUSP, 0, (0,) * 6) == (SUCCESS, 0)
    assert suspended == [True]


def test_probe_of_a_vendor_extension_says_it_is_absent(sbi):
    assert sbi.call(EXT_BASE, 3, (0x0900_0000, 0, 0, 0, 0, 0)) == (SUCCESS, 0)


@pytest.mark.parametrize("extension", [0x0800_0000, 0x0900_0001, 0x4D505859, 3, (1 << 64) - 1])
def test_unknown_extension_is_not_supported(sbi, extension):
    assert sbi.call(extension, 0, (1, 2, 3, 4, 5, 6)) == (ERR_NOT_SUPPORTED, 0)


def test_call_names_are_the_specifications():
    assert call_name(EXT_DBCN, 0) == "DBCN.console_write"
    assert call_name(EXT_SUSP, 0) == "SUSP.system_suspend"
    assert call_name(0x0900_0000, 7) == "0x9000000.7"


def test_legacy_console_prints_and_reads_one_byte_and_keeps_a1(sbi, console):
    console.input = b"k"
    assert sbi.call(1, 0, (0x141, 7, 0, 0, 0, 0)) == (SUCCESS, 7)
    assert console.output == b"A"
    assert sbi.call(2, 0, (0, 7, 0, 0, 0, 0)) == (ord("k"), 7)
    assert sbi.call(2, 0, (0, 7, 0, 0, 0, 0)) == (-1, 7)
