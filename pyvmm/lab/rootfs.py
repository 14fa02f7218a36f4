# SPDX-License-Identifier: Apache-2.0
"""A Debian system on a disk image for guests: systemd, apt, Python, network by DHCP, root without a password.

Nothing of the other architecture runs in its making, so no maintainer script does: what those would do and
such a system needs is done here. It has no kernel and no modules; boot it with a kernel of ``guests``, the
full initrd of that kernel, and root=/dev/vda.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from pyvmm.errors import HostError
from pyvmm.lab import store, tools
from pyvmm.lab.accounts import Accounts
from pyvmm.lab.pins import SUITE, Request
from pyvmm.lab.store import Progress, quiet
from pyvmm.lab.tartree import TarTree, members

_PACKAGES = """
    base-files base-passwd bash bsdutils coreutils dash debianutils diffutils dpkg findutils grep gzip
    hostname init-system-helpers libc-bin ncurses-base ncurses-bin perl-base sed sysvinit-utils tar util-linux
    apt debian-archive-keyring e2fsprogs iproute2 iputils-ping kmod less libpam-modules libpam-runtime login
    dbus mawk mount netbase passwd pciutils procps python3 systemd-sysv udev
"""
REQUEST = Request("rootfs", _PACKAGES.split())
_LEFT_OUT = (
    "usr/share/doc", "usr/share/info", "usr/share/lintian", "usr/share/locale", "usr/share/man",
    "usr/share/zoneinfo", "usr/lib/systemd/boot", "usr/lib/udev/hwdb.d",
)  # fmt: skip
_SIZE = "640M"
_OPTIONS = "lazy_itable_init=0,lazy_journal_init=0"
# What a guest on an emulated host has no use for, and waits for: hardware that is not there, caches of what
# never changes. systemd-logind is there for the power key.
_MASKED = """
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service
    fstrim.timer getty-static.service getty@tty1.service ldconfig.service proc-sys-fs-binfmt_misc.automount
    sys-fs-fuse-connections.mount sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount
    systemd-binfmt.service systemd-firstboot.service systemd-hibernate-clear.service
    systemd-hwdb-update.service systemd-journal-catalog-update.service
    systemd-pcrlock.socket systemd-pcrextend.socket systemd-pstore.service systemd-sysusers.service
    systemd-tmpfiles-clean.timer systemd-tpm2-setup.service systemd-tpm2-setup-early.service
    systemd-update-done.service
"""
_PAM = {
    "common-auth": "auth required pam_unix.so nullok\n",
    "common-account": "account required pam_unix.so\n",
    "common-password": "password required pam_unix.so yescrypt\n",
    "common-session": "session required pam_unix.so\n",
    "common-session-noninteractive": "session required pam_unix.so\n",
}
_FILES = {
    "etc/hostname": "debian\n",
    "etc/hosts": "127.0.0.1 localhost debian\n::1 localhost\n",
    "etc/fstab": "",
    "etc/machine-id": "",  # made at each boot
    "etc/environment": "LANG=C.UTF-8\n",
    "etc/locale.conf": "LANG=C.UTF-8\n",
    "etc/resolv.conf": "nameserver 10.0.2.3\n",
    "etc/systemd/network/80-dhcp.network": "[Match]\nType=ether\n\n[Network]\nDHCP=ipv4\n",
    "etc/apt/sources.list.d/debian.sources": (
        "Types: deb\nURIs: http://deb.debian.org/debian\n"
        f"Suites: {SUITE}\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    ),
    "root/.hushlogin": "",
}
_COPIES = {
    "etc/profile": "usr/share/base-files/profile",
    "etc/nsswitch.conf": "usr/share/libc-bin/nsswitch.conf",
    "root/.bashrc": "usr/share/base-files/dot.bashrc",
    "root/.profile": "usr/share/base-files/dot.profile",
}
_LINKS = {
    "usr/bin/awk": "mawk",
    "usr/bin/pager": "less",
    "var/run": "/run",
    "var/lock": "/run/lock",
    "etc/default/locale": "../locale.conf",
    "etc/mtab": "../proc/self/mounts",
    "etc/systemd/system/default.target": "/usr/lib/systemd/system/multi-user.target",
    **{
        f"etc/systemd/system/{wanting}.wants/{unit}": f"/usr/lib/systemd/system/{unit}"
        for wanting, unit in (
            ("multi-user.target", "systemd-networkd.service"),
            ("sockets.target", "systemd-networkd.socket"),
        )
    },
}
_SHADOW_GROUP = 42


def image(progress: Progress = quiet) -> Path:
    """The disk image: ext4 without partitions, 140 of 640 MB written. Copy it: guests must not change it."""
    key = store.recipe_key(
        REQUEST,
        _LEFT_OUT,
        _SIZE,
        _OPTIONS,
        _MASKED,
        _PAM,
        _FILES,
        _COPIES,
        _LINKS,
        _SHADOW_GROUP,
    )
    return store.build_once(f"rootfs/{key}", lambda work: _build(work, progress), progress) / "debian.img"


def _build(work: Path, progress: Progress) -> None:
    with store.scratch(work) as temp:
        debs, found = REQUEST.fetch(temp, progress)
        progress("building the Debian root file system")
        tree = TarTree(_LEFT_OUT)
        _install(tree, debs)
        _configure(tree)
        tree.write(temp / "root.tar")
        _make_file_system(temp / "root.tar", work / "debian.img", progress)
    store.write_json(work / "manifest.json", found)


def _install(tree: TarTree, debs: Sequence[Path]) -> None:
    """Files, and what dpkg's database says of them."""
    status = []
    for deb in debs:
        paths = tree.add_package(deb)
        control = _output(["dpkg-deb", "--field", str(deb)])
        fields = dict(line.split(": ", 1) for line in control.splitlines() if ": " in line and line[0] != " ")
        name = fields["Package"]
        if fields.get("Multi-Arch") == "same":
            name += f":{fields['Architecture']}"
        tree.file(f"var/lib/dpkg/info/{name}.list", "".join(f"/{path}\n" for path in [".", *paths]))
        for member, data in members(deb, "--ctrl-tarfile"):
            if member.isreg() and member.name != "./control":
                tree.file(f"var/lib/dpkg/info/{name}.{member.name[2:]}", data, member.mode)
        status.append(f"{control.rstrip()}\nStatus: install ok installed\n")
    tree.file("var/lib/dpkg/status", "\n".join(status))
    tree.file("var/lib/dpkg/info/format", "1\n")  # names of architectures in names of files
    tree.file("var/lib/dpkg/arch", "riscv64\n")


def _configure(tree: TarTree) -> None:
    """What maintainer scripts would have done."""
    for path in ("dev", "proc", "sys", "run", "mnt", "etc/apt/apt.conf.d", "var/lib/dpkg/updates"):
        tree.directory(path)
    tree.directory("root", 0o700)
    tree.directory("tmp", 0o1777)
    for path, source in _COPIES.items():
        tree.file(path, tree.read(source))
    for path, text in _FILES.items():
        tree.file(path, text)
    for path, text in _PAM.items():
        tree.file(f"etc/pam.d/{path}", text)
    for path, target in _LINKS.items():
        tree.symlink(path, target)
    for unit in _MASKED.split():
        tree.symlink(f"etc/systemd/system/{unit}", "/dev/null")
    _add_accounts(tree)


def _add_accounts(tree: TarTree) -> None:
    master = "usr/share/base-passwd/{}.master"
    accounts = Accounts(*(tree.read(master.format(name)).decode() for name in ("passwd", "group")))
    for path in tree.paths():
        if path.startswith("usr/lib/sysusers.d/") and path.endswith(".conf"):
            accounts.add_sysusers(tree.read(path).decode())
    for path, text in accounts.files().items():
        secret = path == "etc/shadow"
        tree.file(path, text, 0o640 if secret else 0o644, group=_SHADOW_GROUP if secret else 0)


def _make_file_system(archive: Path, target: Path, progress: Progress) -> None:
    settings = (
        tools.group("e2fsprogs", progress) / "etc/mke2fs.conf"
    )  # not the machine's, which may have none
    command = [*tools.command("mke2fs"), "-q", "-t", "ext4", "-L", "debian", "-E", _OPTIONS]
    _output([*command, "-d", str(archive), str(target), _SIZE], {"MKE2FS_CONFIG": str(settings)})


def _output(command: Sequence[str], environment: Mapping[str, str] = MappingProxyType({})) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise HostError(f"{command[0]} fails: {done.stderr.strip()[-300:]}")
    return done.stdout
