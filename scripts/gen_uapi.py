#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Generate pyvmm/kvm/uapi.py from the kernel's riscv64 uapi headers.

    python scripts/gen_uapi.py [--check] [HEADER_DIR ...]

Without directories the headers that the ``ziglang`` package bundles are used: they are the kernel's own
(``make headers_install``), and a pinned package gives the same bytes on every machine. To generate from
Debian's ``linux-libc-dev``, name its ``usr/include`` and ``usr/include/riscv64-linux-gnu``.

The compiler does the reading, nothing is parsed that it could answer: every value, offset, size and
signedness is put into an inline-assembly string (the kernel's own asm-offsets method) and read back from the
assembly of a riscv64 target. Only member names of a few enums and structs are taken from the header's text.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

OUTPUT = Path(__file__).resolve().parent.parent / "pyvmm" / "kvm" / "uapi.py"

IOCTLS = """
KVM_GET_API_VERSION KVM_CREATE_VM KVM_CHECK_EXTENSION KVM_GET_VCPU_MMAP_SIZE
KVM_CREATE_VCPU KVM_GET_DIRTY_LOG KVM_CLEAR_DIRTY_LOG
KVM_SET_USER_MEMORY_REGION KVM_SET_USER_MEMORY_REGION2
KVM_IRQ_LINE KVM_SIGNAL_MSI KVM_SET_GSI_ROUTING KVM_IRQFD KVM_IOEVENTFD
KVM_REGISTER_COALESCED_MMIO KVM_UNREGISTER_COALESCED_MMIO KVM_ENABLE_CAP
KVM_CREATE_DEVICE KVM_SET_DEVICE_ATTR KVM_GET_DEVICE_ATTR KVM_HAS_DEVICE_ATTR
KVM_RUN KVM_INTERRUPT KVM_SET_SIGNAL_MASK KVM_GET_MP_STATE KVM_SET_MP_STATE KVM_SET_GUEST_DEBUG
KVM_GET_ONE_REG KVM_SET_ONE_REG KVM_GET_REG_LIST
"""

#: Heading -> constants.
CONSTANTS = {
    "The API": "KVM_API_VERSION",
    "Capabilities": """
        KVM_CAP_IRQCHIP KVM_CAP_USER_MEMORY KVM_CAP_NR_VCPUS KVM_CAP_NR_MEMSLOTS KVM_CAP_MP_STATE
        KVM_CAP_COALESCED_MMIO KVM_CAP_SYNC_MMU KVM_CAP_SET_GUEST_DEBUG KVM_CAP_IRQ_ROUTING KVM_CAP_IRQFD
        KVM_CAP_IOEVENTFD KVM_CAP_MAX_VCPUS KVM_CAP_ONE_REG KVM_CAP_SIGNAL_MSI KVM_CAP_READONLY_MEM
        KVM_CAP_DEVICE_CTRL KVM_CAP_ENABLE_CAP_VM KVM_CAP_CHECK_EXTENSION_VM KVM_CAP_IOEVENTFD_ANY_LENGTH
        KVM_CAP_IMMEDIATE_EXIT KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 KVM_CAP_VM_GPA_BITS
        KVM_CAP_SYSTEM_EVENT_DATA KVM_CAP_DIRTY_LOG_RING_ACQ_REL KVM_CAP_USER_MEMORY2
        KVM_CAP_RISCV_MP_STATE_RESET""",
    "Exit reasons": """
        KVM_EXIT_UNKNOWN KVM_EXIT_DEBUG KVM_EXIT_MMIO KVM_EXIT_FAIL_ENTRY KVM_EXIT_INTR
        KVM_EXIT_SYSTEM_EVENT KVM_EXIT_DIRTY_RING_FULL KVM_EXIT_RISCV_SBI KVM_EXIT_RISCV_CSR""",
    "System events": """
        KVM_SYSTEM_EVENT_SHUTDOWN KVM_SYSTEM_EVENT_RESET KVM_SYSTEM_EVENT_CRASH KVM_SYSTEM_EVENT_WAKEUP
        KVM_SYSTEM_EVENT_SUSPEND""",
    "Memory slots and the dirty log": """
        KVM_MEM_LOG_DIRTY_PAGES KVM_MEM_READONLY KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE
        KVM_DIRTY_LOG_INITIALLY_SET""",
    "Interrupts and doorbells": """
        KVM_INTERRUPT_SET KVM_INTERRUPT_UNSET KVM_IRQ_ROUTING_IRQCHIP KVM_IRQ_ROUTING_MSI
        KVM_IRQFD_FLAG_DEASSIGN KVM_IOEVENTFD_FLAG_DATAMATCH KVM_IOEVENTFD_FLAG_DEASSIGN""",
    "vCPUs": """
        KVM_MP_STATE_RUNNABLE KVM_MP_STATE_STOPPED KVM_MP_STATE_INIT_RECEIVED KVM_GUESTDBG_ENABLE
        KVM_COALESCED_MMIO_PAGE_OFFSET""",
    "One-reg ids": """
        KVM_REG_RISCV KVM_REG_SIZE_SHIFT KVM_REG_SIZE_MASK
        KVM_REG_RISCV_TYPE_SHIFT KVM_REG_RISCV_TYPE_MASK KVM_REG_RISCV_SUBTYPE_SHIFT
        KVM_REG_RISCV_SUBTYPE_MASK
        KVM_REG_RISCV_CONFIG KVM_REG_RISCV_CORE KVM_REG_RISCV_CSR KVM_REG_RISCV_TIMER KVM_REG_RISCV_FP_F
        KVM_REG_RISCV_FP_D KVM_REG_RISCV_ISA_EXT KVM_REG_RISCV_SBI_EXT KVM_REG_RISCV_VECTOR
        KVM_REG_RISCV_SBI_STATE
        KVM_REG_RISCV_CSR_GENERAL KVM_REG_RISCV_CSR_AIA KVM_REG_RISCV_CSR_SMSTATEEN
        KVM_REG_RISCV_ISA_SINGLE KVM_REG_RISCV_ISA_MULTI_EN KVM_REG_RISCV_ISA_MULTI_DIS
        KVM_REG_RISCV_SBI_SINGLE KVM_REG_RISCV_SBI_MULTI_EN KVM_REG_RISCV_SBI_MULTI_DIS
        KVM_REG_RISCV_SBI_STA KVM_REG_RISCV_SBI_FWFT
        KVM_RISCV_MODE_U KVM_RISCV_MODE_S KVM_RISCV_TIMER_STATE_OFF KVM_RISCV_TIMER_STATE_ON""",
    "The in-kernel AIA": """
        KVM_DEV_TYPE_RISCV_AIA KVM_CREATE_DEVICE_TEST
        KVM_DEV_RISCV_AIA_GRP_CONFIG KVM_DEV_RISCV_AIA_GRP_ADDR KVM_DEV_RISCV_AIA_GRP_CTRL
        KVM_DEV_RISCV_AIA_GRP_APLIC KVM_DEV_RISCV_AIA_GRP_IMSIC
        KVM_DEV_RISCV_AIA_CONFIG_MODE KVM_DEV_RISCV_AIA_CONFIG_IDS KVM_DEV_RISCV_AIA_CONFIG_SRCS
        KVM_DEV_RISCV_AIA_CONFIG_GROUP_BITS KVM_DEV_RISCV_AIA_CONFIG_GROUP_SHIFT
        KVM_DEV_RISCV_AIA_CONFIG_HART_BITS KVM_DEV_RISCV_AIA_CONFIG_GUEST_BITS
        KVM_DEV_RISCV_AIA_ADDR_APLIC KVM_DEV_RISCV_AIA_ADDR_IMSIC(0) KVM_DEV_RISCV_AIA_CTRL_INIT
        KVM_DEV_RISCV_AIA_IMSIC_ISEL_BITS
        KVM_DEV_RISCV_AIA_MODE_EMUL KVM_DEV_RISCV_AIA_MODE_HWACCEL KVM_DEV_RISCV_AIA_MODE_AUTO
        KVM_DEV_RISCV_APLIC_SIZE KVM_DEV_RISCV_IMSIC_SIZE""",
}

#: Python name -> (C struct, fields). ``field:X`` packs a byte array as one item of struct code X.
#: A name with a trailing "@" is a view into the middle of its struct and also gets NAME_OFFSET.
STRUCTS = {
    "USERSPACE_MEMORY_REGION": (
        "kvm_userspace_memory_region",
        "slot flags guest_phys_addr memory_size userspace_addr",
    ),
    "USERSPACE_MEMORY_REGION2": (
        "kvm_userspace_memory_region2",
        "slot flags guest_phys_addr memory_size userspace_addr guest_memfd_offset guest_memfd",
    ),
    "DIRTY_LOG": ("kvm_dirty_log", "slot dirty_bitmap"),
    "CLEAR_DIRTY_LOG": ("kvm_clear_dirty_log", "slot num_pages first_page dirty_bitmap"),
    "IRQ_LEVEL": ("kvm_irq_level", "irq level"),
    "IRQFD": ("kvm_irqfd", "fd gsi flags resamplefd"),
    "IOEVENTFD": ("kvm_ioeventfd", "datamatch addr len fd flags"),
    "MSI": ("kvm_msi", "address_lo address_hi data flags devid"),
    "IRQ_ROUTING": ("kvm_irq_routing", "nr flags"),
    "IRQ_ROUTING_IRQCHIP": ("kvm_irq_routing_entry", "gsi type flags u.irqchip.irqchip u.irqchip.pin"),
    "IRQ_ROUTING_MSI": (
        "kvm_irq_routing_entry",
        "gsi type flags u.msi.address_lo u.msi.address_hi u.msi.data u.msi.devid",
    ),
    "COALESCED_MMIO_ZONE": ("kvm_coalesced_mmio_zone", "addr size pio"),
    "COALESCED_MMIO_RING": ("kvm_coalesced_mmio_ring", "first last"),
    "COALESCED_MMIO": ("kvm_coalesced_mmio", "phys_addr len pio data:Q"),
    "CREATE_DEVICE": ("kvm_create_device", "type fd flags"),
    "DEVICE_ATTR": ("kvm_device_attr", "flags group attr addr"),
    "ENABLE_CAP": ("kvm_enable_cap", "cap flags args"),
    "ONE_REG": ("kvm_one_reg", "id addr"),
    "REG_LIST": ("kvm_reg_list", "n"),
    "MP_STATE": ("kvm_mp_state", "mp_state"),
    "INTERRUPT": ("kvm_interrupt", "irq"),
    "GUEST_DEBUG": ("kvm_guest_debug", "control"),
    "RUN_EXIT_REASON@": ("kvm_run", "exit_reason"),
    "RUN_IMMEDIATE_EXIT@": ("kvm_run", "immediate_exit"),
    "RUN_MMIO@": ("kvm_run", "mmio.phys_addr mmio.data:Q mmio.len mmio.is_write"),
    "RUN_MMIO_DATA@": ("kvm_run", "mmio.data:Q"),
    "RUN_SBI@": ("kvm_run", "riscv_sbi.extension_id riscv_sbi.function_id riscv_sbi.args"),
    "RUN_SBI_RET@": ("kvm_run", "riscv_sbi.ret"),
    "RUN_CSR@": ("kvm_run", "riscv_csr.csr_num riscv_csr.new_value riscv_csr.write_mask"),
    "RUN_CSR_RET@": ("kvm_run", "riscv_csr.ret_value"),
    "RUN_SYSTEM_EVENT@": ("kvm_run", "system_event.type system_event.ndata system_event.data"),
    "RUN_FAIL_ENTRY@": ("kvm_run", "fail_entry.hardware_entry_failure_reason fail_entry.cpu"),
}

#: Python name -> (header, enum, prefix of its members). The last member is the count.
ENUMS = {
    "ISA_EXTENSIONS": ("asm/kvm.h", "KVM_RISCV_ISA_EXT_ID", "KVM_RISCV_ISA_EXT_"),
    "SBI_EXTENSIONS": ("asm/kvm.h", "KVM_RISCV_SBI_EXT_ID", "KVM_RISCV_SBI_EXT_"),
}

#: Python name -> (header, struct whose members are registers in index order).
REGISTERS = {
    "CONFIG_REGISTERS": ("asm/kvm.h", "kvm_riscv_config"),
    "CORE_REGISTERS": ("asm/ptrace.h", "user_regs_struct"),
    "CSR_REGISTERS": ("asm/kvm.h", "kvm_riscv_csr"),
    "CSR_AIA_REGISTERS": ("asm/kvm.h", "kvm_riscv_aia_csr"),
    "CSR_SMSTATEEN_REGISTERS": ("asm/kvm.h", "kvm_riscv_smstateen_csr"),
    "TIMER_REGISTERS": ("asm/kvm.h", "kvm_riscv_timer"),
    "VECTOR_REGISTERS": ("asm/ptrace.h", "__riscv_v_ext_state"),
    "SBI_STA_REGISTERS": ("asm/kvm.h", "kvm_riscv_sbi_sta"),
    "SBI_FWFT_FEATURES": ("asm/kvm.h", "kvm_riscv_sbi_fwft"),
}


class Headers:
    """Kernel headers, and a riscv64 compiler that reads them."""

    def __init__(self, directories: list[Path]) -> None:
        self.directories = directories

    def text(self, name: str) -> str:
        for directory in self.directories:
            if (directory / name).exists():
                return re.sub(r"/\*.*?\*/", "", (directory / name).read_text(), flags=re.S)
        sys.exit(f"none of {', '.join(map(str, self.directories))} holds {name}")

    def compile(self, source: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run the compiler on ``source``; its standard output is the assembly."""
        with tempfile.TemporaryDirectory() as scratch:
            path, output = Path(scratch, "abi.c"), Path(scratch, "abi.s")
            path.write_text("#include <linux/kvm.h>\n#include <linux/version.h>\n" + source)
            command = [sys.executable, "-m", "ziglang", "cc", "-target", "riscv64-linux-musl", "-nostdinc"]
            command += [f"-I{directory}" for directory in self.directories]
            command += ["-S", *options, "-o", str(output), str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            done.stdout = output.read_text() if output.exists() else ""
            return done

    def evaluate(self, expressions: list[str]) -> list[int]:
        """The compiler's values of constant expressions, as unsigned 64-bit integers."""
        lines = [
            f'asm volatile("#->{i} %0" :: "i"((unsigned long long)({e})));' for i, e in enumerate(expressions)
        ]
        done = self.compile("void abi(void) {\n" + "\n".join(lines) + "\n}\n")
        if done.returncode:
            sys.exit(done.stderr)
        found = {int(i): int(v, 0) for i, v in re.findall(r"#->(\d+) (-?\w+)", done.stdout)}
        return [found[i] % 2**64 for i in range(len(expressions))]

    def members(self, header: str, kind: str, name: str) -> list[str]:
        """Member names of an enum or struct, in the header's order."""
        block = re.search(rf"{kind} {name} {{(.*?)\n}};", self.text(header), re.S)
        if not block:
            sys.exit(f"{header} has no {kind} {name}")
        pattern = r"(\w+)(?: = \d+)?," if kind == "enum" else r"(\w+);"
        return re.findall(pattern, block.group(1))


def bundled_headers() -> list[Path]:
    """The header directories of the installed ``ziglang`` package."""
    import ziglang

    include = Path(ziglang.__file__).parent / "lib" / "libc" / "include"
    return [include / "riscv-linux-any", include / "any-linux-any"]


def constant_lines(headers: Headers) -> list[str]:
    """One assignment a constant, under its heading."""
    groups = {k: v.split() for k, v in {"ioctl requests": IOCTLS, **CONSTANTS}.items()}
    names = [name for group in groups.values() for name in group]
    values = dict(zip(names, headers.evaluate(names), strict=True))
    lines = []
    for heading, group in groups.items():
        lines += ["", f"# {heading}"]
        lines += [f"{name.split('(')[0]} = {number(values[name])}" for name in group]
    lines += ["", "# Names of the requests above, for error messages"]
    return lines + tuple_lines("IOCTLS", IOCTLS.split())


def number(value: int) -> str:
    return str(value) if value < 0x1000 else f"0x{value:X}"


def struct_lines(headers: Headers) -> list[str]:
    """One ``struct.Struct`` a kernel struct (or view into one), its offset, and what its items are."""
    layouts = field_layouts(headers)
    sizes = headers.evaluate([f"sizeof(struct {struct})" for struct, _ in STRUCTS.values()])
    lines = [
        "",
        "# Structs and the names of their items; NAME_OFFSET is where a view begins in struct kvm_run",
    ]
    for (key, (_, fields)), layout, size in zip(STRUCTS.items(), layouts, sizes, strict=True):
        view, name = key.endswith("@"), key.rstrip("@")
        start, end = (layout[0][0], None) if view else (0, size)
        lines.append(f'{name} = Struct("{pack_format(layout, start, end)}")  # {item_names(fields)}')
        if view:
            lines.append(f"{name}_OFFSET = {start}")
    ends = ["sizeof(struct kvm_irq_routing)", "sizeof(struct kvm_coalesced_mmio_ring)"]
    routing, ring = headers.evaluate(ends)
    return [*lines, f"IRQ_ROUTING_ENTRIES_OFFSET = {routing}", f"COALESCED_MMIO_ENTRIES_OFFSET = {ring}"]


def item_names(fields: str) -> str:
    return re.sub(r"\w+\.|:\w", "", fields)


def field_layouts(headers: Headers) -> list[list[tuple[int, str, int]]]:
    """For each of STRUCTS, the (offset, struct code with count, size) of every field."""
    fields = [(s, *f.partition(":")[::2]) for s, names in STRUCTS.values() for f in names.split()]
    members = [f"((struct {struct} *)0)->{path}" for struct, path, _ in fields]
    offsets = headers.evaluate([f"__builtin_offsetof(struct {s}, {path})" for s, path, _ in fields])
    sizes = headers.evaluate([f"sizeof({member})" for member in members])
    scalars = [f"(__typeof__({m}))-1 < 0" if n <= 8 else "0" for m, n in zip(members, sizes, strict=True)]
    scalars = ["0" if code else e for e, (_, _, code) in zip(scalars, fields, strict=True)]
    signs = headers.evaluate(scalars)
    codes = [code or scalar_code(n, sign) for (_, _, code), n, sign in zip(fields, sizes, signs, strict=True)]
    rows = iter(zip(offsets, codes, sizes, strict=True))
    return [[next(rows) for _ in names.split()] for _, names in STRUCTS.values()]


def scalar_code(size: int, signed: int) -> str:
    """The struct-module code of an integer field, or of an array of 64-bit ones."""
    if size > 8:
        return f"{size // 8}Q"
    code = {1: "b", 2: "h", 4: "i", 8: "q"}[size]
    return code if signed else code.upper()


def pack_format(layout: list[tuple[int, str, int]], start: int, end: int | None) -> str:
    """A little-endian format with explicit padding between fields, and up to ``end``."""
    text, at = "<", start
    for offset, code, size in layout:
        text += pad(offset - at) + code
        at = offset + size
    return text + (pad(end - at) if end is not None else "")


def pad(count: int) -> str:
    return f"{count}x" if count else ""


def tuple_lines(name: str, items: list[str]) -> list[str]:
    """``name = (...)`` wrapped at the line length."""
    lines, line = [f"{name} = ("], "   "
    for item in items:
        word = f' "{item}",'
        if len(line) + len(word) > 110:
            lines.append(line)
            line = "   "
        line += word
    return [*lines, line, ")"]


def table_lines(headers: Headers) -> list[str]:
    """Tuples of names whose positions are the kernel's numbers; the compiler confirms the positions."""
    lines = ["", "# Names in the order of their numbers"]
    for name, (header, enum, prefix) in ENUMS.items():
        members = headers.members(header, "enum", enum)[:-1]
        assert headers.evaluate(members) == list(range(len(members))), enum
        lines += tuple_lines(name, [member.removeprefix(prefix).lower() for member in members])
    for name, (header, struct) in REGISTERS.items():
        members = headers.members(header, "struct", struct)
        first = f"sizeof(((struct {struct} *)0)->{members[0]})"
        indexes = headers.evaluate([f"__builtin_offsetof(struct {struct}, {m}) / {first}" for m in members])
        assert indexes == list(range(len(members))), struct
        lines += tuple_lines(name, members)
    return lines


def generate(headers: Headers) -> str:
    """The text of uapi.py."""
    code = headers.evaluate(["LINUX_VERSION_CODE"])[0]
    version = f"{code >> 16}.{code >> 8 & 255}"
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        '"""KVM\'s user-space ABI on riscv64: numbers, struct formats, names.',
        "",
        f"GENERATED by scripts/gen_uapi.py from the riscv64 uapi headers of Linux {version}. Do not edit.",
        "Plain integers and struct formats, not ctypes structures: importing it is on the start-up path.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "from struct import Struct",
        "",
        f'HEADERS = "Linux {version}"',
    ]
    return "\n".join([*lines, *constant_lines(headers), *struct_lines(headers), *table_lines(headers), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description="generate pyvmm/kvm/uapi.py")
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 on a difference")
    parser.add_argument("directories", nargs="*", type=Path, metavar="HEADER_DIR")
    options = parser.parse_args()
    text = generate(Headers(options.directories or bundled_headers()))
    if options.check:
        sys.exit(0 if OUTPUT.read_text() == text else f"{OUTPUT} differs from what these headers give")
    OUTPUT.write_text(text)


if __name__ == "__main__":
    main()
