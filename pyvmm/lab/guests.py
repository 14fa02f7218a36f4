# SPDX-License-Identifier: Apache-2.0
"""Guests to boot in the lab: Debian's kernels, busybox root file systems, U-Boot.

Built on first use, kept in the cache.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pyvmm.lab import kernels, store, tools
from pyvmm.lab.cpio import Initramfs
from pyvmm.lab.kernels import GUEST_MODULES
from pyvmm.lab.packages import Archive, require_commands, unpack
from pyvmm.lab.store import Progress, quiet

_INIT = Path(__file__).parent / "data" / "guest-init"
_APPLETS = """
    ash awk basename base64 blkid cat chmod chvt cksum clear cmp cp cttyhack cut date dd devmem df dirname
    dmesg du echo env expr false find free grep gunzip gzip halt head hexdump hostname hwclock id ifconfig
    insmod ip kill killall ln ls lsmod md5sum mkdir mkfifo mknod modprobe more mount mv nc nproc od ping
    poweroff printf ps pwd readlink reboot rm rmdir rmmod sed seq setsid sh sha256sum sleep sort stat stty
    sync tail tar taskset tee test time timeout top touch tr true tty udhcpc umount uname uniq uptime
    usleep vi wc wget xargs xxd yes zcat
"""


def kernel(series: str = "7", progress: Progress = quiet) -> Path:
    """The flat Image of Debian's riscv64 kernel of a series: "7" or "6.12"."""
    return kernels.kernel(series, progress).image


def release(series: str = "7") -> str:
    """What ``uname -r`` says under that kernel."""
    return kernels.kernel(series).release


def initrd(series: str = "7", *, full: bool = False, progress: Progress = quiet) -> Path:
    """A busybox root file system (uncompressed) with a shell on the console.

    The small one is some 2 MB. ``full`` adds the kernel's modules for virtio devices, 9p and ext4; modprobe
    loads them.
    """
    guest_kernel = kernels.kernel(series, progress) if full else None
    manifest = guest_kernel.manifest if guest_kernel else {}
    key = store.recipe_key(_APPLETS, _INIT.read_bytes(), manifest)
    name = f"guests/initrd-{series if full else 'small'}-{key}"
    return (
        store.build_once(name, lambda work: _build_initrd(work, guest_kernel, progress), progress)
        / "initrd.cpio"
    )


def uboot(progress: Progress = quiet) -> Path:
    """U-Boot for qemu-riscv64_smode, as a flat binary."""
    return _package("u-boot-qemu", progress) / "usr/lib/u-boot/qemu-riscv64_smode/u-boot.bin"


def _build_initrd(work: Path, guest_kernel: kernels.Kernel | None, progress: Progress) -> None:
    fs = Initramfs()
    for path in ("dev", "proc", "sys", "tmp", "root", "mnt", "etc"):
        fs.directory(path)
    fs.character_device("dev/console", 5, 1)
    fs.file("init", _INIT.read_bytes(), 0o755)
    fs.file("bin/busybox", (_package("busybox-static", progress) / "usr/bin/busybox").read_bytes(), 0o755)
    for applet in _APPLETS.split():
        fs.symlink(f"bin/{applet}", "busybox")
    if guest_kernel:
        _add_modules(fs, guest_kernel)
    (work / "initrd.cpio").write_bytes(fs.pack())


def _add_modules(fs: Initramfs, guest_kernel: kernels.Kernel) -> None:
    tree = guest_kernel.modules
    directory = f"lib/modules/{guest_kernel.release}"
    order = tree.load_order(GUEST_MODULES)
    for name in order:
        fs.file(f"{directory}/{name}.ko", tree.content(name))
    lines = [
        f"{name}.ko: {' '.join(f'{other}.ko' for other in reversed(tree.load_order([name])[:-1]))}\n"
        for name in order
    ]
    fs.file(f"{directory}/modules.dep", "".join(lines).encode())


def _package(name: str, progress: Progress) -> Path:
    """The unpacked files of one package of the guests' Debian release."""

    def build(work: Path) -> None:
        require_commands()
        with store.scratch(work) as temp:
            archive = Archive(temp / "apt", tools.SUITE, "riscv64")
            archive.update()
            packages = archive.select([name])
            unpack(archive.fetch(packages, temp / "debs", progress), work)
            shutil.rmtree(work / "usr/share", ignore_errors=True)
        store.write_json(
            work / "manifest.json", {"suite": tools.SUITE, "packages": [p.manifest() for p in packages]}
        )

    return store.build_once(f"guests/{name}-{store.recipe_key(tools.SUITE, name)}", build, progress)
