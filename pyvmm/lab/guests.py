# SPDX-License-Identifier: Apache-2.0
"""Guests to boot in the lab: Debian's kernels, busybox root file systems, U-Boot.

Built on first use, kept in the cache.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pyvmm.cpio import Initramfs
from pyvmm.lab import elf, kernels, store
from pyvmm.lab.kernels import GUEST_MODULES
from pyvmm.lab.packages import Archive, unpack
from pyvmm.lab.pins import Request
from pyvmm.lab.store import Progress, quiet

_DATA = Path(__file__).parent / "data"
_APPLETS = """
    ash awk base64 basename blkdiscard blkid blockdev bzcat cat chgrp chmod chown chroot chvt cksum clear
    cmp cp cpio cttyhack cut date dd devmem df diff dirname dmesg du echo ed egrep env expr fallocate
    false fgrep find free fsfreeze fstrim ftpget getopt grep groups gunzip gzip halt head hexdump hostid
    hostname httpd hwclock id ifconfig init insmod install ionice ip kill killall last less ln logger
    losetup ls lsmod md5sum mkdir mkfifo mknod mkswap mktemp modinfo modprobe more mount mv nc netstat
    nice nologin nproc nslookup od passwd patch pidof ping ping6 poweroff printf ps pwd readlink realpath
    reboot renice rev rm rmdir rmmod route sed seq setpriv setsid sh sha1sum sha256sum sha512sum shred
    shuf sleep sort stat stty switch_root sync sysctl tac tail tar taskset tee telnet test time timeout
    top touch tr traceroute true truncate tty udhcpc umount uname uniq unlink unshare unxz uptime usleep
    vconfig vi watch wc wget which whoami xargs xxd xzcat yes zcat
"""
_SETUP = "pyvmm-setup"  # the agent's commands begin once init has removed it
_SCRIPTS = {"init": "guest-init", "etc/udhcpc/default.script": "udhcpc"}
# What busybox has not, or not well enough, and where it goes.
_PROGRAMS = {
    "usr/bin/lspci": ("bin/lspci",),
    "usr/sbin/mke2fs": ("sbin/mke2fs", "sbin/mkfs.ext4"),
    "usr/sbin/e2fsck": ("sbin/e2fsck", "sbin/fsck.ext4"),
    "etc/mke2fs.conf": ("etc/mke2fs.conf",),
    "usr/lib/ld-linux-riscv64-lp64d.so.1": ("lib/ld-linux-riscv64-lp64d.so.1",),
}
_LIBRARIES = "lib/riscv64-linux-gnu"
_BUSYBOX = Request("guests/busybox-static", ("busybox-static",), Archive.select)
_UBOOT = Request("guests/u-boot-qemu", ("u-boot-qemu",), Archive.select)
_MORE = Request("guests/programs", ("e2fsprogs", "pciutils"))
REQUESTS = (_BUSYBOX, _UBOOT, _MORE)


def kernel(series: str = "7", progress: Progress = quiet) -> Path:
    """The flat Image of Debian's riscv64 kernel of a series: "7" or "6.12"."""
    return kernels.kernel(series, progress).image


def release(series: str = "7") -> str:
    """What ``uname -r`` says under that kernel."""
    return kernels.kernel(series).release


def initrd(
    series: str = "7", *, full: bool = False, programs: Path | None = None, progress: Progress = quiet
) -> Path:
    """A busybox root file system (uncompressed) with a shell on the console.

    The small one is some 2 MB. ``full`` adds the modules of that kernel for virtio devices, 9p, ext4 and user
    space drivers (modprobe loads them), and lspci, mkfs.ext4 and e2fsck: 20 MB, half a second more in the
    lab's boots. Linux 7 then needs 512 MB of memory, since it sets half of 256 MB aside before it unpacks.
    ``programs`` is a directory of programs to have in /bin besides, named after its content.
    With root= on the kernel command line, its init goes on to a system on a disk or in a folder.
    """
    if programs:
        return _with_programs(initrd(series, full=full, progress=progress), programs, progress)
    guest_kernel = kernels.kernel(series, progress) if full else None
    contents: list[object] = [_BUSYBOX, *((_DATA / name).read_bytes() for name in _SCRIPTS.values())]
    if guest_kernel:
        contents += [guest_kernel.manifest, GUEST_MODULES, _PROGRAMS, _MORE]
    key = store.recipe_key(_APPLETS, _SETUP, _SCRIPTS, contents)
    name = f"guests/initrd-{series if full else 'small'}-{key}"
    return (
        store.build_once(name, lambda work: _build_initrd(work, guest_kernel, progress), progress)
        / "initrd.cpio"
    )


def uboot(progress: Progress = quiet) -> Path:
    """U-Boot for qemu-riscv64_smode, as a flat binary."""
    return _unpacked(_UBOOT, progress) / "usr/lib/u-boot/qemu-riscv64_smode/u-boot.bin"


def _with_programs(base: Path, programs: Path, progress: Progress) -> Path:
    """``base`` and a second archive, which the kernel unpacks over the first."""

    def build(work: Path) -> None:
        fs = Initramfs()
        for path in sorted(programs.iterdir()):
            fs.copy(path, f"bin/{path.name}")
        (work / "initrd.cpio").write_bytes(base.read_bytes() + fs.pack())

    return store.build_once(f"guests/{base.parent.name}-{programs.name}", build, progress) / "initrd.cpio"


def _build_initrd(work: Path, guest_kernel: kernels.Kernel | None, progress: Progress) -> None:
    fs = Initramfs()
    for path in ("dev", "proc", "sys", "tmp", "root", "mnt", "etc"):
        fs.directory(path)
    fs.character_device("dev/console", 5, 1)
    for path, source in _SCRIPTS.items():
        fs.file(path, (_DATA / source).read_bytes(), 0o755)
    fs.file(_SETUP, b"", 0o644)
    fs.file("bin/busybox", (_unpacked(_BUSYBOX, progress) / "usr/bin/busybox").read_bytes(), 0o755)
    for applet in _APPLETS.split():
        fs.symlink(f"bin/{applet}", "busybox")
    if guest_kernel:
        _add_programs(fs, progress)
        guest_kernel.modules.install(fs, f"lib/modules/{guest_kernel.release}", GUEST_MODULES)
    (work / "initrd.cpio").write_bytes(fs.pack())


def _add_programs(fs: Initramfs, progress: Progress) -> None:
    root = _unpacked(_MORE, progress)
    for source, targets in _PROGRAMS.items():
        for target in targets:
            fs.copy(root / source, target)
    directory = root / "usr" / _LIBRARIES
    for name in sorted(elf.libraries([root / path for path in _PROGRAMS], directory)):
        fs.file(f"{_LIBRARIES}/{name}", (directory / name).read_bytes(), 0o755)


def _unpacked(request: Request, progress: Progress) -> Path:
    """The unpacked files of these packages."""

    def build(work: Path) -> None:
        with store.scratch(work) as temp:
            debs, found = request.fetch(temp, progress)
            unpack(debs, work)
            shutil.rmtree(work / "usr/share", ignore_errors=True)
        store.write_json(work / "manifest.json", found)

    return store.build_once(f"{request.build}-{store.recipe_key(request)}", build, progress)
