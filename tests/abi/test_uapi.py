# SPDX-License-Identifier: Apache-2.0
"""uapi.py against the kernel's riscv64 headers: the compiler itself checks every size, offset and constant.

Each fact becomes one static assertion in a C file that is compiled, not run, for riscv64. What is asserted
is derived from uapi.py's values and from ``struct`` formats, not from how the generator found them. Name
other header directories in PYVMM_KERNEL_HEADERS (separated by colons) to check against another kernel.
"""

import importlib.util
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.kvm import uapi

pytest.importorskip("ziglang")
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "gen_uapi.py"

spec = importlib.util.spec_from_file_location("gen_uapi", SCRIPT)
gen_uapi = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gen_uapi)

MEMBER_OF_INDEXED = {"KVM_DEV_RISCV_AIA_ADDR_IMSIC": "KVM_DEV_RISCV_AIA_ADDR_IMSIC(0)"}


@pytest.fixture(scope="module")
def headers():
    named = os.environ.get("PYVMM_KERNEL_HEADERS")
    return gen_uapi.Headers([Path(p) for p in named.split(":")] if named else gen_uapi.bundled_headers())


def wrong(headers, assertions):
    """The assertions that the compiler finds false."""
    lines = [f'_Static_assert({text}, "{index}");' for index, text in enumerate(assertions)]
    done = headers.compile("\n".join(lines) + "\n", "-ferror-limit=0")
    failed = re.findall(r"static assertion failed[^\n]*: (\d+)", done.stderr)
    if done.returncode and not failed:
        pytest.fail(done.stderr)
    return [assertions[int(index)] for index in failed]


def items(fmt):
    """(offset, size, code) of each item of a struct format; repeat counts are one array."""
    offset, found = 0, []
    for count, code in re.findall(r"(\d*)([a-zA-Z])", fmt.lstrip("<")):
        size = struct.calcsize("<" + count + code)
        if code != "x":
            found.append((offset, size, code))
        offset += size
    return found


def layouts():
    for key, (kernel_struct, fields) in gen_uapi.STRUCTS.items():
        name = key.rstrip("@")
        yield name, kernel_struct, [field.partition(":")[::2] for field in fields.split()]


def test_constants_have_the_kernels_values(headers):
    constants = [n for n in vars(uapi) if n.startswith("KVM_")]
    assert len(constants) > 130
    kernel_names = [MEMBER_OF_INDEXED.get(name, name) for name in constants]
    values = [getattr(uapi, name) for name in constants]
    facts = [f"(__u64)({n}) == {v}ULL" for n, v in zip(kernel_names, values, strict=True)]
    assert wrong(headers, facts) == []


def test_structs_have_the_kernels_sizes(headers):
    whole = [(name, s) for name, s, _ in layouts() if not hasattr(uapi, f"{name}_OFFSET")]
    facts = [f"sizeof(struct {s}) == {getattr(uapi, name).size}" for name, s in whole]
    facts.append(f"sizeof(struct kvm_irq_routing) == {uapi.IRQ_ROUTING_ENTRIES_OFFSET}")
    assert wrong(headers, facts) == []


def test_fields_have_the_kernels_offsets_and_sizes(headers):
    facts = []
    for name, kernel_struct, fields in layouts():
        start = getattr(uapi, f"{name}_OFFSET", 0)
        found = items(getattr(uapi, name).format)
        assert len(found) == len(fields), name
        for (offset, size, _), (path, _) in zip(found, fields, strict=True):
            member = f"((struct {kernel_struct} *)0)->{path}"
            facts.append(f"__builtin_offsetof(struct {kernel_struct}, {path}) == {start + offset}")
            facts.append(f"sizeof({member}) == {size}")
    entries = "__builtin_offsetof(struct kvm_coalesced_mmio_ring, coalesced_mmio)"
    facts.append(f"{entries} == {uapi.COALESCED_MMIO_ENTRIES_OFFSET}")
    assert len(facts) > 150
    assert wrong(headers, facts) == []


def test_fields_have_the_kernels_signs(headers):
    facts = []
    for name, kernel_struct, fields in layouts():
        for (_, size, code), (path, override) in zip(items(getattr(uapi, name).format), fields, strict=True):
            if size <= 8 and not override:
                negative = f"(__typeof__(((struct {kernel_struct} *)0)->{path}))-1 < 0"
                facts.append(negative if code.islower() else f"!({negative})")
    assert wrong(headers, facts) == []


def test_extension_numbers_are_positions_in_the_tables(headers):
    facts = []
    for table, prefix in (("ISA_EXTENSIONS", "KVM_RISCV_ISA_EXT_"), ("SBI_EXTENSIONS", "KVM_RISCV_SBI_EXT_")):
        names = getattr(uapi, table)
        facts += [f"{prefix}{name.upper()} == {index}" for index, name in enumerate(names)]
        facts.append(f"{prefix}MAX == {len(names)}")
    assert wrong(headers, facts) == []


@pytest.mark.parametrize(
    ("table", "kernel_struct", "size"),
    [
        ("CONFIG_REGISTERS", "kvm_riscv_config", 8),
        ("CORE_REGISTERS", "user_regs_struct", 8),
        ("CSR_REGISTERS", "kvm_riscv_csr", 8),
        ("CSR_AIA_REGISTERS", "kvm_riscv_aia_csr", 8),
        ("CSR_SMSTATEEN_REGISTERS", "kvm_riscv_smstateen_csr", 8),
        ("TIMER_REGISTERS", "kvm_riscv_timer", 8),
        ("VECTOR_REGISTERS", "__riscv_v_ext_state", 8),
        ("SBI_STA_REGISTERS", "kvm_riscv_sbi_sta", 8),
        ("SBI_FWFT_FEATURES", "kvm_riscv_sbi_fwft", 24),
    ],
)
def test_register_numbers_are_positions_in_the_tables(headers, table, kernel_struct, size):
    names = getattr(uapi, table)
    facts = [
        f"__builtin_offsetof(struct {kernel_struct}, {name}) == {size * index}"
        for index, name in enumerate(names)
    ]
    facts.append(f"sizeof(struct {kernel_struct}) == {size * len(names)}")
    assert wrong(headers, facts) == []


def test_mode_follows_the_core_registers(headers):
    fact = f"__builtin_offsetof(struct kvm_riscv_core, mode) == {8 * len(uapi.CORE_REGISTERS)}"
    assert wrong(headers, [fact]) == []


def test_a_false_assertion_is_found(headers):
    facts = ["sizeof(struct kvm_irqfd) == 32", "sizeof(struct kvm_irqfd) == 31"]
    assert wrong(headers, facts) == facts[1:]


def test_generating_again_gives_the_same_bytes():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
