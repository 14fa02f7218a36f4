# SPDX-License-Identifier: Apache-2.0
"""``pyvmm doctor``: can this host run guests, and what to do if not."""

from __future__ import annotations

import os
import sys

from pyvmm.cli.parser import Command, Option
from pyvmm.errors import KvmUnavailable

OK, WARN, FAIL = "ok", "warn", "fail"

COMMAND = Command(
    "doctor",
    "Can this host run RISC-V guests, how well, and what to do if not. Exits with 126 when it cannot.",
    (
        Option("--json", key="json", help="as one JSON list"),
        Option("--strict", key="strict", help="exit with 126 on warnings too"),
        Option("--dev", key="dev", metavar="FILE", help="KVM device node [/dev/kvm]"),
    ),
)


class Check:
    """One finding: what was looked at, how it is, and what to do about it."""

    __slots__ = ("advice", "found", "name", "state")

    def __init__(self, name: str, state: str, found: str, advice: str = "") -> None:
        self.name = name
        self.state = state
        self.found = found
        self.advice = advice


def main(words: list[str]) -> int:
    """Print the checks."""
    values = COMMAND.parse(words)
    checks = run_checks(str(values.get("dev", "/dev/kvm")))
    if values.get("json"):
        import json

        fields = ("name", "state", "found", "advice")
        print(json.dumps([{field: getattr(check, field) for field in fields} for check in checks], indent=2))
    else:
        for check in checks:
            print(f"{check.state:<5}{check.name}: {check.found}")
            if check.advice:
                print(f"     -> {check.advice}")
    bad = (FAIL, WARN) if values.get("strict") else (FAIL,)
    return 126 if any(check.state in bad for check in checks) else 0


def run_checks(dev: str) -> list[Check]:
    """Every check that makes sense on this host."""
    checks = [_python()]
    if os.uname().machine != "riscv64":
        return [*checks, _lab()]
    return [*checks, *_kvm(dev), _huge_pages(), _node("/dev/net/tun"), _node("/dev/vhost-net")]


def _python() -> Check:
    return Check("python", OK, sys.version.split(maxsplit=1)[0])


def _lab() -> Check:
    machine = os.uname().machine
    if machine != "x86_64":
        return Check(
            "host", FAIL, f"{machine} has no RISC-V KVM", "use a RISC-V host, or an x86-64 one for the lab"
        )
    return Check(
        "host",
        WARN,
        f"{machine} has no RISC-V KVM",
        "guests run in the lab, an emulated RISC-V host: see pyvmm lab",
    )


def _kvm(dev: str) -> list[Check]:
    from pyvmm.kvm import regs, uapi
    from pyvmm.kvm.system import Kvm

    try:
        kvm = Kvm(dev)
    except KvmUnavailable as error:
        return [Check("kvm", FAIL, str(error))]
    with kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        checks = [Check("kvm", OK, f"{dev}, API {uapi.KVM_API_VERSION}")]
        checks.append(Check("cpus", OK, f"up to {vm.check_extension(uapi.KVM_CAP_MAX_VCPUS)} a guest"))
        bits = vm.check_extension(uapi.KVM_CAP_VM_GPA_BITS)
        checks.append(Check("guest addresses", OK, f"{bits} bits" if bits else "width unknown"))
        checks.append(_aia(vm.check_extension(uapi.KVM_CAP_IRQCHIP)))
        extensions = regs.isa_extensions(vcpu)
        on = sorted(name for name, enabled in extensions.items() if enabled)
        checks.append(Check("isa", OK, " ".join(on)))
        checks.append(_sstc(extensions.get("sstc", False)))
        sbi = regs.sbi_extensions(vcpu)
        checks.append(Check("sbi", OK, " ".join(sorted(sbi))))
    return checks


def _aia(present: int) -> Check:
    if present:
        return Check("in-kernel AIA", OK, "interrupts and MSIs are delivered by the kernel")
    return Check("in-kernel AIA", WARN, "none", "guests get a user-space PLIC: no MSI, slower interrupts")


def _sstc(enabled: bool) -> Check:
    if enabled:
        return Check("sstc", OK, "guests set their timers without leaving")
    return Check("sstc", WARN, "none", "every guest timer is an SBI call")


def _huge_pages() -> Check:
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled", encoding="ascii") as file:
            mode = file.read().partition("[")[2].partition("]")[0]
    except OSError:
        return Check("huge pages", WARN, "not built into this kernel", "guest memory faults cost more")
    if mode == "never":
        return Check("huge pages", WARN, mode, "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled")
    return Check("huge pages", OK, mode)


def _node(path: str) -> Check:
    if not os.path.exists(path):
        return Check(path, WARN, "missing", f"modprobe {os.path.basename(path).replace('-', '_')}")
    if not os.access(path, os.R_OK | os.W_OK):
        return Check(path, WARN, "no permission", f"ask to be given access to {path}")
    return Check(path, OK, "there")
