# SPDX-License-Identifier: Apache-2.0
"""The guests' assembler against words assembled by LLVM."""

import pytest
from fakes.asm import Asm


def encoded(write):
    code = Asm(0x8000_0000)
    write(code)
    data = code.assemble()
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda c: c.lb("a0", -1, "t0"), [0xFFF28503]),  # lb a0,-1(t0)
        (lambda c: c.lhu("a1", 4, "s0"), [0x00445583]),  # lhu a1,4(s0)
        (lambda c: c.lwu("t6", 2047, "s11"), [0x7FFDEF83]),  # lwu t6,2047(s11)
        (lambda c: c.ld("a0", 8, "sp"), [0x00813503]),  # ld a0,8(sp)
        (lambda c: c.sb("a0", -2048, "t0"), [0x80A28023]),  # sb a0,-2048(t0)
        (lambda c: c.sh("s2", 30, "t1"), [0x01231F23]),  # sh s2,30(t1)
        (lambda c: c.sd("t6", 33, "a5"), [0x03F7B0A3]),  # sd t6,33(a5)
        (
            lambda c: (c.c_lw("a0", 68, "s1"), c.c_sw("a5", 60, "s0")),
            [0xDC5C40E8],
        ),  # c.lw a0,68(s1); c.sw a5,60(s0)
        (
            lambda c: (c.c_ld("a4", 200, "a1"), c.c_sd("s1", 64, "a0")),
            [0xE12465F8],
        ),  # c.ld a4,200(a1); c.sd s1,64(a0)
        (lambda c: c.amoadd_w("a0", "a1", "t0"), [0x00B2A52F]),  # amoadd.w a0,a1,(t0)
        (lambda c: c.addi("gp", "tp", -7), [0xFF920193]),  # addi gp,tp,-7
        (lambda c: c.slli("a0", "a0", 63), [0x03F51513]),  # slli a0,a0,63
        (lambda c: c.lui("a0", 0x80000), [0x80000537]),  # lui a0,0x80000
        (lambda c: c.mv("a0", "s3"), [0x00098513]),  # mv a0,s3
        (
            lambda c: (
                c.label("x"),
                c.beq("a0", "zero", "x"),
                c.bne("t0", "t1", "y"),
                c.jalr("ra", "t2", -4),
                c.label("y"),
            ),
            [0x00050063, 0x00629463, 0xFFC380E7],
        ),  # x: beq a0,zero,x; bne t0,t1,y; jalr ra,-4(t2); y:
        (
            lambda c: (c.ecall(), c.ebreak(), c.wfi(), c.fence()),
            [0x00000073, 0x00100073, 0x10500073, 0x0330000F],
        ),  # ecall; ebreak; wfi; fence rw,rw
        (lambda c: c.csrrw("a0", "seed", "zero"), [0x01501573]),  # csrrw a0,0x015,zero
        (
            lambda c: (c.csrr("a0", "stopei"), c.csrw("sireg", "a1")),
            [0x15C02573, 0x15159073],
        ),  # csrr a0,0x15c; csrw 0x151,a1
    ],
)
def test_instruction_is_encoded_as_llvm_does(write, words):
    assert encoded(write) == words


def value_of(words):
    """What a sequence of lui, addi, addiw and slli leaves in its register."""
    value = 0
    for word in words:
        imm = (word >> 20) - (word >> 31 << 12)
        if word & 0x7F == 0x37:
            value = word & 0xFFFF_F000
            value -= (value >> 31) << 32
        elif word >> 12 & 7 == 1:
            value <<= imm
        else:
            value += imm
            if word & 0x7F == 0x1B:
                value = (value + (1 << 31)) % (1 << 32) - (1 << 31)
    return value % (1 << 64)


EDGES = [0, 1, 0x7FF, 0x800, 0x8000_0000, 0x7FFF_FFFF, 0x7FFF_F800, 0x1000_0000, 0x8877_6655_4433_2281]


@pytest.mark.parametrize("value", [*EDGES, *(2**64 - edge for edge in EDGES[1:])])
def test_li_loads_any_constant(value):
    assert value_of(encoded(lambda code: code.li("a0", value))) == value


def test_label_before_and_after_gives_its_address():
    code = Asm(0x1000)
    code.j("end")
    code.label("end")
    code.wfi()
    assert (code.address("end"), code.here) == (0x1004, 0x1008)
    assert code.assemble()[:4] == (0x0040_006F).to_bytes(4, "little")
