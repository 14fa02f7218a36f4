# SPDX-License-Identifier: Apache-2.0
"""The options that define a machine, shared by every command that takes one. lkvm's names come first."""

from __future__ import annotations

import os

from pyvmm.cli.parser import Option, UsageError
from pyvmm.config import AIA_MODES, CONFIG_FILE, CONSOLES, IRQCHIPS, ON_PANIC, ON_REBOOT, TRANSPORTS

MACHINE_OPTIONS = (
    Option("-k", "--kernel", key="kernel", metavar="FILE", group="Boot", help="kernel: Image (also .gz, .zst, zboot) or ELF"),
    Option("-i", "--initrd", key="initrd", metavar="FILE", group="Boot", help="initial RAM disk"),
    Option("--agent", key="agent", group="Boot", help="an agent in the guest that runs commands, at its agent.sock"),
    Option("-p", "--params", "-a", "--append", key="params", metavar="TEXT", group="Boot", help="kernel command line"),
    Option("-f", "--firmware", key="firmware", metavar="FILE", group="Boot", help="S-mode firmware (U-Boot) instead of a kernel"),
    Option("--dump-dtb", key="dump_dtb", metavar="FILE", group="Boot", help="write the guest's device tree blob"),
    Option("-m", "--mem", key="mem", metavar="SIZE", group="Machine", help="guest RAM: 512M, 2G, a bare number is MiB [256M; 512M for Debian's guest with drivers]"),
    Option("-c", "--cpus", key="cpus", metavar="N", group="Machine", help="number of harts [1]"),
    Option("--isa", key="isa", metavar="LIST", group="Machine", help="extensions: host,-svpbmt,+zbb [host]"),
    Option("--cpu-type", key="cpu_type", metavar="max|min[,EXT]", group="Machine", help="max: all KVM has; min: rv64imafdc"),
    Option("--irqchip", key="irqchip", choices=IRQCHIPS, metavar="KIND", group="Machine", help="interrupt controller [auto]"),
    Option("--aia-mode", key="aia_mode", choices=AIA_MODES, metavar="MODE", group="Machine", help="in-kernel AIA mode [auto]"),
    Option("--mem-backend", key="mem_backend", metavar="KIND", group="Machine", help="anon, memfd or hugetlbfs:PATH [anon]"),
    Option("--dev", key="dev", metavar="FILE", group="Machine", help="KVM device node [/dev/kvm]"),
    Option("-d", "--disk", key="disks", many=True, metavar="FILE[,ro][,direct][,id=X]", group="Devices", help="raw disk image or block device"),
    Option("-n", "--network", key="nets", many=True, metavar="user|tap[,tap=X][,...]", group="Devices", help="network card: user is passt"),
    Option("--9p", key="p9", many=True, metavar="DIR[,TAG][,rw]", group="Devices", help="share a folder by 9P, read-only unless rw"),
    Option("--share", key="shares", many=True, metavar="DIR[,TAG][,rw]", group="Devices", help="the same by virtio-fs (virtiofsd)"),
    Option("--vsock", key="vsock", many=True, metavar="CID", group="Devices", help="vsock with this context id"),
    Option("--rng", key="rng", many=True, value="", optional="rate=SIZE", group="Devices", help="random numbers from the host"),
    Option("--balloon", key="balloon", many=True, value="", optional="SIZE", group="Devices", help="memory balloon"),
    Option("--device", key="devices", many=True, metavar="KIND[,KEY=VALUE]", group="Devices", help="any device: blk, net, 9p, fs, vsock, rng, balloon, edu"),
    Option("--virtio-transport", "--machine", key="virtio_transport", choices=TRANSPORTS, metavar="KIND", group="Devices", help="how virtio devices are connected [pci]"),
    Option("--console", key="console", choices=CONSOLES, metavar="KIND", group="Console", help="guest console [virtio]"),
    Option("--port", key="ports", many=True, metavar="NAME,unix=PATH", group="Devices", help="virtio-console port by name; also NAME,file=PATH"),
)  # fmt: skip

CONFIG_OPTIONS = (
    Option("--config", key="config", metavar="FILE", group="Configuration", help="take options from there [pyvmm.toml, if it is here]"),
    Option("--profile", key="profile", metavar="PROFILE", group="Configuration", help="and those of this profile in it"),
    Option("--no-config", key="no_config", group="Configuration", help="take none from pyvmm.toml"),
)  # fmt: skip

DRY_RUN = Option(
    "--dry-run",
    key="dry_run",
    value="text",
    optional="json",
    choices=("json",),
    group="Meta",
    help="show the machine, and start nothing",
)

NAME = Option(
    "--name", key="name", metavar="NAME", group="Meta", help="what others call the guest by [vm1, vm2...]"
)

RUN_OPTIONS = (
    Option("--log", key="log", metavar="FILE", group="Console", help="also write console output there"),
    Option("--timeout", key="timeout", metavar="TIME", group="Ends", help="end TIME (90s, 5m) after the guest's start, with code 124"),
    Option("--on-panic", key="on_panic", choices=ON_PANIC, metavar="DO", group="Ends", help="on a guest panic [exit, code 255]"),
    Option("--on-reboot", key="on_reboot", choices=ON_REBOOT, metavar="DO", group="Ends", help="on a guest reboot [reboot]"),
    Option("--trace", key="trace", metavar="mmio,sbi,irq", group="Observe", help="show these events on stderr"),
    Option("--trace-out", key="trace_out", metavar="FILE", group="Observe", help="write the trace there instead"),
)  # fmt: skip

#: Understood, wanted, not there yet: refused with a sentence rather than ignored.
REFUSED = {
    **{name: f"{name} is not available yet: pyvmm has no flash device." for name in ("-F", "--flash")},
    "--gdb": "--gdb is not available yet: look at the guest with pyvmm debug.",
    "--dtb": "--dtb is not available: pyvmm writes the device tree itself; look at it with pyvmm dtb.",
    "--tty": "--tty is not available: the console is on stdin and stdout; further channels are --port.",
    "--hugetlbfs": "--hugetlbfs PATH is spelled --mem-backend hugetlbfs:PATH here.",
    "--debug-mmio": "--debug-mmio is spelled --trace mmio here.",
    "--sandbox": "--sandbox is spelled pyvmm exec -- COMMAND here.",
    "--vfio-pci": "--vfio-pci is not available: pyvmm gives no device of the host to a guest.",
    "--nodefaults": "--nodefaults is not needed: pyvmm adds no device that was not asked for.",
}

PREFIXES = {
    "--disable-sbi-": ("disable_sbi", "keep an SBI extension from the guest"),
    "--disable-": ("disable_isa", "keep an ISA extension from the guest"),
}


def resolved(values: dict[str, object]) -> tuple[dict[str, object], str | None]:
    """``values`` over those of the configuration file, and how to call what was taken from there.

    Raises ConfigError. Where there is no file, this costs a look.
    """
    path, profile = values.pop("config", None), values.pop("profile", None)
    if values.pop("no_config", False):
        if path is not None or profile is not None:
            raise UsageError("--no-config has no meaning with --config or --profile; leave one of them out.")
        return values, None
    if path is None and profile is None and not os.path.exists(CONFIG_FILE):
        return values, None
    from pyvmm import profiles

    given = None if path is None else str(path), None if profile is None else str(profile)
    source = given[0] or CONFIG_FILE
    if profile is not None:
        source += f", profile {profile}"
    return profiles.resolve(values, *given), source
