# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from pyvmm.errors import ConfigError
from pyvmm.mmio import regs
from pyvmm.mmio.regs import Bit, Field, Reg, RegArray, RegisterDevice


class Sample(RegisterDevice):
    NAME = "sample"
    SIZE = 0x1000
    STATE = ("log", "nested")

    CTRL = Reg(0x00, 32, fields={"enable": Bit(0), "mode": Field(4, 8), "ready": Bit(31, "r")}, reset=1 << 31)
    STAT = Reg(0x04, 32, fields={"fired": Bit(0, "w1c"), "armed": Bit(1, "w1s"), "on": Bit(2)}, reset=0b101)
    WIDE = Reg(0x08, 64, sizes=(1, 2, 4, 8))
    ID = Reg(0x10, 32, access="r", reset=0x1234)
    LATCH = Reg(0x14, 16, access="w", reset=9)
    DATA = Reg(0x18, 8, access="r", on_read="_read_data")
    PORT = Reg(0x18, 8, access="w", on_write="_write_port")
    DIV = Reg(0x18, 8, when="CTRL.enable", reset=7)
    HOOKED = Reg(0x1C, 32, fields={"low": Field(0, 4), "cause": Bit(4, "w1c")}, on_write="_write_hooked")
    TABLE = RegArray(0x100, 32, count=8, reset=3, fields={"level": Field(0, 3)})
    LIMIT = RegArray(0x200, 32, count=16, stride=0x10)
    CLAIM = RegArray(0x204, 32, count=16, stride=0x10, on_read="_claim", on_write="_complete")

    def __init__(self) -> None:
        super().__init__(LIMIT=4, CLAIM=4)
        self.log: list[int] = []
        self.nested = [[1], [2]]
        self.restored = 0
        self.reset()

    def _read_data(self):
        return 0x1FF

    def _write_port(self, value):
        self.log.append(value)
        return self.log.clear if value == 0xFF else None

    def _write_hooked(self, value):
        self.log.append(self.HOOKED)
        self.HOOKED = value

    def _claim(self, index):
        return 100 + index

    def _complete(self, index, value):
        self.log.append((index, value))

    def _restored(self):
        self.restored += 1


@pytest.fixture
def device():
    return Sample()


def test_reset_values_read_back(device):
    assert [device.read(offset, 4) for offset in (0x00, 0x04, 0x10, 0x104)] == [1 << 31, 0b101, 0x1234, 3]


def test_registers_are_plain_attributes_of_the_device(device):
    device.CTRL = 0x21
    device.TABLE[2] = 5
    assert (device.read(0x00, 4), device.read(0x108, 4)) == (0x21, 5)


def test_write_keeps_reserved_and_read_only_bits(device):
    device.write(0x00, 4, 0x7FFF_FFFF)
    assert device.CTRL == 0x8000_0FF1
    device.write(0x00, 4, 0)
    assert device.CTRL == 0x8000_0000


def test_write_is_cut_to_its_size(device):
    device.write(0x10C, 4, 0x1_0000_0005)
    device.write(0x14, 2, 0x5_1234)
    assert (device.TABLE[3], device.LATCH) == (5, 0x1234)


def test_w1c_clears_and_w1s_sets_only_what_was_written_as_one(device):
    device.write(0x04, 4, 0b010)
    assert device.STAT == 0b011
    device.write(0x04, 4, 0b100)
    assert device.STAT == 0b111
    device.write(0x04, 4, 0b101)
    assert device.STAT == 0b110


def test_sub_word_accesses_touch_their_lane_only(device):
    device.write(0x08, 8, 0x1122_3344_5566_7788)
    device.write(0x0A, 2, 0xABCD)
    device.write(0x0F, 1, 0xEE)
    assert device.WIDE == 0xEE22_3344_ABCD_7788
    assert [device.read(0x0C, 4), device.read(0x0A, 1), device.read(0x0E, 2)] == [0xEE22_3344, 0xCD, 0xEE22]
    assert device.odd == 0


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0x00, 1), (0x00, 8), (0x02, 2), (0x09, 2), (0x06, 4), (0x20, 4), (0x120, 4), (0x102, 4), (0xFFF, 1)],
)
def test_odd_access_reads_zero_changes_nothing_and_is_counted(device, offset, size):
    before = device.state()
    assert device.write(offset, size, (1 << 8 * size) - 1) is None
    assert device.read(offset, size) == 0
    assert device.odd == 2
    assert device.state() == before


def test_wrong_direction_is_an_odd_access(device):
    device.write(0x10, 4, 5)
    assert device.read(0x14, 2) == 0
    assert (device.ID, device.LATCH, device.odd) == (0x1234, 9, 2)


def test_on_read_replaces_the_load_and_is_cut_to_the_width(device):
    assert device.read(0x18, 1) == 0xFF


def test_on_write_replaces_the_store_and_its_after_comes_back(device):
    assert device.write(0x18, 1, 0x141) is None
    assert device.log == [0x41]
    assert device.write(0x18, 1, 0xFF) == device.log.clear


def test_on_write_is_given_the_merged_value_while_the_old_one_is_in_place(device):
    device.HOOKED = 0b1_0011
    device.write(0x1C, 4, 0xFFFF_FF04)
    assert device.log == [0b1_0011]
    assert device.HOOKED == 0b1_0100
    device.write(0x1C, 4, 0x10)
    assert device.HOOKED == 0


def test_array_handlers_are_given_the_index(device):
    assert [device.read(0x204 + 0x10 * i, 4) for i in range(4)] == [100, 101, 102, 103]
    device.write(0x224, 4, 77)
    assert device.log == [(2, 77)]


def test_array_elements_beyond_what_the_instance_has_are_odd(device):
    device.write(0x240, 4, 1)
    assert (device.read(0x244, 4), device.odd, len(device.LIMIT)) == (0, 2, 4)


def test_banked_register_shows_while_its_field_is_set(device):
    device.write(0x00, 4, 1)
    assert device.read(0x18, 1) == 7
    device.write(0x18, 1, 0x99)
    assert device.read(0x18, 1) == 0x99
    device.write(0x00, 4, 0)
    assert device.read(0x18, 1) == 0xFF
    device.write(0x18, 1, 0x55)
    assert (device.DIV, device.log) == (0x99, [0x55])


def test_reset_restores_every_register_and_does_not_share_arrays(device):
    device.write(0x00, 4, 0x11)
    device.TABLE[0] = 1
    other = Sample()
    device.reset()
    assert device.state() == other.state()
    device.TABLE[0] = 6
    assert other.TABLE[0] == 3


def test_compiled_accesses_are_bounded_and_the_rest_still_work(device, monkeypatch):
    monkeypatch.setattr(regs, "_COMPILED_LIMIT", 4)
    for offset in range(0x1000):
        device.read(offset, 1)
        device.write(offset, 1, 0)
    assert len(device._readers) == len(device._writers) == 4
    device.write(0x110, 4, 6)
    assert (device.read(0x110, 4), device.read(0x18, 1)) == (6, 0xFF)


def test_instances_do_not_share_compiled_accesses(device):
    other = Sample()
    other.write(0x100, 4, 5)
    device.write(0x100, 4, 6)
    assert (other.read(0x100, 4), device.read(0x100, 4)) == (5, 6)


@pytest.mark.parametrize(
    ("access", "expected"),
    [
        ((0x00, 4, True, 0x8000_0031), ("CTRL", "enable=1 mode=3 ready=1")),
        ((0x00, 4, True, 0xAB0), ("CTRL", "mode=0xab")),
        ((0x00, 4, False, 0), ("CTRL", "")),
        ((0x108, 4, True, 5), ("TABLE[2]", "level=5")),
        ((0x214, 4, False, 7), ("CLAIM[1]", "")),
        ((0x0A, 2, False, 7), ("WIDE", "")),
        ((0x18, 1, False, 7), ("DATA", "")),
        ((0x18, 1, True, 7), ("PORT", "")),
        ((0x30, 4, True, 7), ("+0x30", "")),
        ((0x00, 1, True, 7), ("+0x0", "")),
    ],
)
def test_decode_names_the_register_and_its_fields(device, access, expected):
    assert device.decode(*access) == expected


def test_decode_follows_the_bank(device):
    device.CTRL = 1
    assert device.decode(0x18, 1, False, 7) == ("DIV", "")


def test_decode_of_a_lane_shifts_the_fields():
    class Lanes(RegisterDevice):
        NAME, SIZE = "lanes", 4
        R = Reg(0, 32, sizes=(1, 4), fields={"low": Field(0, 4), "high": Field(24, 4)})

    assert Lanes().decode(3, 1, True, 5) == ("R", "high=5")


def test_registers_lists_the_map_by_offset():
    names = [register.name for register in Sample.registers()]
    assert names[0] == "CTRL"
    assert names[-2:] == ["LIMIT", "CLAIM"]
    assert str(Sample.TABLE) == "TABLE[8] (0x100-0x11f)"
    assert str(Sample.WIDE) == "WIDE (0x8-0xf)"


def test_state_holds_what_is_stored_and_nothing_else(device):
    assert set(device.state()) == {
        *("CTRL", "STAT", "WIDE", "ID", "LATCH", "DIV", "HOOKED", "TABLE", "LIMIT"),
        *("log", "nested"),
    }


def test_state_round_trips_and_is_independent_of_the_device(device):
    device.write(0x00, 4, 0x30)
    device.write(0x104, 4, 1)
    device.nested[0][0] = 8
    saved = device.state()
    device.TABLE[1] = 0
    device.nested[0][0] = 0
    other = Sample()
    other.load_state(saved)
    assert other.state() == saved
    assert (other.TABLE[1], other.nested, other.restored) == (1, [[8], [2]], 1)
    other.nested[0][0] = 9
    assert saved["nested"] == [[8], [2]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"CTRL": "1"}, "CTRL has another form"),
        ({"CTRL": True}, "CTRL has another form"),
        ({"CTRL": 1 << 20}, "CTRL has another form"),
        ({"ID": -1}, "ID has another form"),
        ({"TABLE": [0] * 7}, "TABLE has another form"),
        ({"TABLE": [8] * 8}, "TABLE has another form"),
        ({"nested": [[1], 2]}, "nested has another form"),
        ({"log": b""}, "log has another form"),
        ({"extra": 1}, "from another version: extra differ"),
    ],
)
def test_state_of_another_form_is_refused_and_changes_nothing(device, change, message):
    saved = device.state()
    with pytest.raises(ConfigError, match=message):
        device.load_state(saved | {"STAT": 0} | change)
    assert device.state() == saved


def test_registers_are_inherited():
    class More(Sample):
        EXTRA = Reg(0x40, 32, reset=5)

    device = More()
    assert (device.read(0x40, 4), device.read(0x10, 4)) == (5, 0x1234)
    assert len(More.registers()) == len(Sample.registers()) + 1


def declare(**registers):
    return type("Dev", (RegisterDevice,), {"NAME": "dev", "SIZE": 0x100, "_h": lambda self: 0, **registers})


@pytest.mark.parametrize(
    ("registers", "message"),
    [
        ({"A": lambda: Reg(0, 24)}, r"Dev\.A: a register has 8, 16, 32 or 64 bits, not 24"),
        ({"A": lambda: Reg(0, access="x")}, r'Dev\.A: access is "r", "w" or "rw", not "x"'),
        ({"A": lambda: Reg(2)}, r"Dev\.A: A \(0x2-0x5\) is misaligned or outside of the device's 0x100"),
        ({"A": lambda: Reg(0x100)}, r"Dev\.A: A \(0x100-0x103\) is misaligned or outside"),
        ({"A": lambda: RegArray(0xF8, count=3)}, r"Dev\.A: A\[3\] \(0xf8-0x103\) is misaligned or outside"),
        ({"A": lambda: RegArray(0, count=0)}, r"Dev\.A: 0 elements, 4 bytes apart, cannot be"),
        ({"A": lambda: RegArray(0, count=2, stride=2)}, r"Dev\.A: 2 elements, 2 bytes apart, cannot be"),
        ({"A": lambda: Reg(0, fields={"f": Bit(0)}, reset=2)}, r"Dev\.A: reset value 0x2 sets reserved bits"),
        ({"A": lambda: Reg(0, 16, sizes=(4,))}, r"Dev\.A: access sizes \(4,\) do not fit 16 bits"),
        ({"A": lambda: Reg(0, 8, fields={"f": Field(6, 3)})}, r"field f \[8:6\] does not fit 8 bits"),
        (
            {"A": lambda: Reg(0, fields={"f": Field(0, 4), "g": Bit(3)})},
            r"Dev\.A: fields f \[3:0\] and g \[3:3\] overlap",
        ),
        (
            {"A": lambda: Reg(0, access="r", fields={"f": Bit(0, "w1c")})},
            r"Dev\.A: field f \[0:0\] is w1c, the register is not stored rw",
        ),
        ({"A": lambda: Reg(0, access="r", on_write="_h")}, r'handler _h can never run, access is "r"'),
        ({"A": lambda: Reg(0, on_read="_none")}, r"Dev\.A: there is no method _none"),
        (
            {"A": lambda: Reg(0, sizes=(1, 4), on_read="_h", on_write="_h")},
            r"Dev\.A: sub-word writes need a stored value to merge with",
        ),
        ({"A": lambda: Reg(0, when="B.f")}, r"Dev\.A: there is no field B\.f to select it"),
        (
            {"A": lambda: Reg(0, when="B.g"), "B": lambda: Reg(4, fields={"f": Bit(0)})},
            r"Dev\.A: there is no field B\.g",
        ),
        (
            {"A": lambda: Reg(4), "B": lambda: Reg(6, 8)},
            r"Dev: A \(0x4-0x7\) and B \(0x6-0x6\) overlap",
        ),
        (
            {"A": lambda: Reg(8), "B": lambda: RegArray(0, count=4)},
            r"Dev: B\[4\] \(0x0-0xf\) and A \(0x8-0xb\) overlap",
        ),
        (
            {"A": lambda: RegArray(0, count=4, stride=16), "B": lambda: RegArray(2, 8, count=4, stride=16)},
            r"Dev: A\[4\] \(0x0-0x33\) and B\[4\] \(0x2-0x32\) overlap",
        ),
        (
            {"A": lambda: RegArray(0, count=4, stride=16), "B": lambda: RegArray(8, count=4, stride=8)},
            r"overlap",
        ),
    ],
)
def test_contradictory_declaration_is_refused_with_class_and_register(registers, message):
    with pytest.raises(ValueError, match=message):
        declare(**{name: make() for name, make in registers.items()})


def test_interleaved_arrays_and_registers_in_gaps_are_accepted():
    declare(
        A=RegArray(0, count=4, stride=16),
        B=RegArray(4, count=4, stride=16),
        C=Reg(0x18),
        D=RegArray(0x0C, 8, count=2, stride=0x20),
    )


def test_one_offset_may_hold_a_register_a_direction_and_a_bank():
    declare(
        A=Reg(0, access="r"),
        B=Reg(0, access="w"),
        C=Reg(0, when="S.f"),
        S=Reg(4, fields={"f": Bit(0)}),
    )
