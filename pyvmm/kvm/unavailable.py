# SPDX-License-Identifier: Apache-2.0
"""Why ``/dev/kvm`` cannot be used, and what to do about it. Loaded only when that happens."""

from __future__ import annotations

import os
from errno import EACCES, ENODEV, ENOENT, ENXIO, EPERM

from pyvmm.errors import KvmUnavailable

_CPUINFO = "/proc/cpuinfo"


def explain(path: str, error: OSError, machine: str) -> KvmUnavailable:
    """The error to raise after opening ``path`` failed with ``error`` on a host of type ``machine``."""
    if machine != "riscv64":
        return wrong_machine(machine)
    errno = error.errno or 0
    if errno in (ENOENT, ENODEV, ENXIO):
        return KvmUnavailable(_missing(path), errno)
    if errno in (EACCES, EPERM):
        return KvmUnavailable(_forbidden(path), errno)
    return KvmUnavailable(f"cannot open {path}: {os.strerror(errno)}", errno)


def wrong_machine(machine: str) -> KvmUnavailable:
    """For hosts whose KVM, if any, runs guests of another architecture."""
    return KvmUnavailable(
        f"this host is {machine}: KVM runs RISC-V guests only on a RISC-V host (riscv64) with the hypervisor "
        "extension; `--host lab` runs them in an emulated one"
    )


def _missing(path: str) -> str:
    isa = host_isa()
    if isa and not has_hypervisor_extension(isa):
        return f"{path} does not exist: this host's CPU has no hypervisor extension (its ISA is {isa})"
    return (
        f"{path} does not exist: the kvm module is not loaded (try `sudo modprobe kvm`), or this kernel was "
        "built without CONFIG_KVM"
    )


def _forbidden(path: str) -> str:
    mode, gid = _mode_and_group(path)
    if mode & 0o060 != 0o060:
        return (
            f"no permission to open {path}: only its owner may; start pyvmm as root or change the udev rule"
        )
    group = _group_name(gid)
    return (
        f"no permission to open {path}: it is for the group {group}; `sudo usermod -aG {group} $USER` and a "
        "new login give you access"
    )


def _mode_and_group(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_mode, status.st_gid


def _group_name(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def host_isa(cpuinfo: str = "") -> str:
    """The ISA string of the first hart in /proc/cpuinfo, such as ``rv64imafdch_zicbom``, or nothing."""
    try:
        with open(cpuinfo or _CPUINFO, encoding="ascii", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == "isa":
                    return value.strip()
    except OSError:
        pass
    return ""


def has_hypervisor_extension(isa: str) -> bool:
    """Whether the single-letter part of an ISA string has H."""
    return "h" in isa.lower().removeprefix("rv64").partition("_")[0]
