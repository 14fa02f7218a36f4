# SPDX-License-Identifier: Apache-2.0
"""The lab host's root file system: an initramfs of Debian packages, cut down."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from pyvmm.cpio import Initramfs
from pyvmm.errors import HostError
from pyvmm.lab import elf, store, tools
from pyvmm.lab.kernels import HOST_MODULES, HOST_MODULES_ON_DEMAND, Kernel, kernel
from pyvmm.lab.packages import unpack
from pyvmm.lab.pins import Request
from pyvmm.lab.store import Progress, quiet

_PACKAGES = (
    "busybox-static",
    "e2fsprogs",
    "libatomic1",
    "openssh-server",
    "passt",
    f"libpython{tools.PYTHON}-stdlib",
    f"python{tools.PYTHON}-minimal",
    "virtiofsd",
)
REQUEST = Request("host", _PACKAGES)
_LIBRARIES = "usr/lib/riscv64-linux-gnu"
_STDLIB = f"usr/lib/python{tools.PYTHON}"
_FILES = (
    "usr/bin/busybox", f"usr/bin/python{tools.PYTHON}", "usr/sbin/sshd", "usr/lib/openssh/sshd-session",
    "usr/lib/openssh/sshd-auth", "usr/lib/ld-linux-riscv64-lp64d.so.1",
    # What devices need on the host, and what their tests need.
    "usr/bin/passt", "usr/libexec/virtiofsd", "usr/sbin/mke2fs", "usr/sbin/e2fsck", "usr/sbin/debugfs",
    "etc/mke2fs.conf",
)  # fmt: skip
_LINKS = {
    "bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib",
    "usr/bin/python3": f"python{tools.PYTHON}", "usr/bin/sh": "busybox", "init": "usr/bin/busybox",
    "usr/bin/virtiofsd": "../libexec/virtiofsd", "usr/sbin/mkfs.ext4": "mke2fs",
    "usr/sbin/fsck.ext4": "e2fsck",
}  # fmt: skip
_LOADED_BY_NAME = ("libatomic.so.1", "libgcc_s.so.1", "libutil.so.1")  # by ctypes, or by libc itself
_NOT_IN_STDLIB = (
    "test", "idlelib", "tkinter", "turtledemo", "turtle.py", "ensurepip", "pydoc_data", "venv", "lib2to3",
    "curses", "sitecustomize.py", "LICENSE.txt", "_ios_support.py", "_android_support.py",
)  # fmt: skip
_NOT_IN_DYNLOAD = (
    "_ssl",
    "_hashlib",
    "_curses",
    "_curses_panel",
    "readline",
    "_test",
    "_xx",
    "_ctypes_test",
    "_dbm",
    "_gdbm",
)
_CONFIGURATION = {
    "etc/passwd": (
        "root:x:0:0:root:/:/bin/sh\nsshd:x:100:65534::/run/sshd:/bin/false\n"
        "nobody:x:65534:65534::/:/bin/false\n"
    ),
    "etc/group": "root:x:0:\ntty:x:5:\nkvm:x:101:\nnogroup:x:65534:\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\nsshd:!:19000::::::\n",
    "etc/hosts": "127.0.0.1 localhost lab\n",
    "etc/resolv.conf": "nameserver 10.0.2.3\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
    "etc/ssh/sshd_config": (
        "HostKey /etc/ssh/host_key\nAuthorizedKeysFile /etc/ssh/authorized_keys\n"
        "PermitRootLogin prohibit-password\nAuthenticationMethods publickey\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nUsePAM no\nUseDNS no\nStrictModes no\nPrintMotd no\n"
        "PrintLastLog no\nMaxSessions 1000\nMaxStartups 100\nLogLevel ERROR\n"
        "KexAlgorithms curve25519-sha256\n"
    ),
}
_DIRECTORIES = (
    "dev",
    "proc",
    "sys",
    "run",
    "machine",
    "var/empty",
    "usr/local/lib",
    "usr/lib/python3/dist-packages",
)
_DATA = Path(__file__).parent / "data"
_SCRIPTS = {
    "etc/inittab": "data/inittab",
    "lib/lab/setup": "data/setup",
    "lib/lab/session": "data/session",
    "lib/lab/unpack": "data/unpack",
    "lib/lab/agent.py": "agent.py",
}


class Image:
    """A built host image in the cache: initramfs, keys, manifest; snapshots of it are kept beside them."""

    def __init__(self, directory: Path, host_kernel: Kernel) -> None:
        self.directory = directory
        self.kernel = host_kernel

    @property
    def initrd(self) -> Path:
        """The root file system, compressed."""
        return self.directory / "initrd.zst"

    @property
    def client_key(self) -> Path:
        """The private key that the lab's sshd admits."""
        return self.directory / "client_key"

    @property
    def known_hosts(self) -> Path:
        """The lab's host key, under the host name ``lab``."""
        return self.directory / "known_hosts"

    @property
    def paths(self) -> list[str]:
        """What is in the root file system, relative to it."""
        return (self.directory / "paths").read_text().splitlines()

    def manifest(self) -> dict[str, object]:
        """What the whole host was made of: packages with versions and hashes, and the suite of each part."""
        root: dict[str, object] = store.read_json(self.directory / "manifest.json") or {}
        return {"root": root, "kernel": self.kernel.manifest, "tools": tools.manifest("host")}


def image(series: str, progress: Progress = quiet) -> Image:
    """The host image with a kernel of ``series``, built on first use.

    When the archive cannot deliver series 7 now, the host gets 6.12: it works, with a fault that the manifest
    shows.
    """
    tools.group(
        "host", progress
    )  # first: an archive that cannot be reached shows here, and is no reason for 6.12
    host_kernel = _host_kernel(series, progress)
    scripts = [(Path(__file__).parent / source).read_bytes() for source in _SCRIPTS.values()]
    contents = (
        _FILES,
        _LINKS,
        _LOADED_BY_NAME,
        _NOT_IN_STDLIB,
        _NOT_IN_DYNLOAD,
        _CONFIGURATION,
        _DIRECTORIES,
        scripts,
    )
    key = store.recipe_key(REQUEST, *contents, host_kernel.manifest)
    directory = store.build_once(f"host/{key}", lambda work: _build(work, host_kernel, progress), progress)
    return Image(directory, host_kernel)


def _host_kernel(series: str, progress: Progress) -> Kernel:
    try:
        return kernel(series, progress)
    except HostError as e:
        if series == "6.12":
            raise
        progress(f"{e} Taking Linux 6.12.")
        return kernel("6.12", progress)


def _build(work: Path, host_kernel: Kernel, progress: Progress) -> None:
    with store.scratch(work) as temp:
        debs, found = REQUEST.fetch(temp, progress)
        root = temp / "root"
        unpack(debs, root)
        progress("building the lab host's root file system")
        _make_keys(work)
        _prune_stdlib(root / _STDLIB)
        compile_packages(root / _STDLIB, root / _STDLIB, "/" + _STDLIB)
        archive_file = _assemble(root, work, host_kernel)
        _compress(archive_file.pack(), work / "initrd.zst")
    (work / "paths").write_text("".join(f"{path}\n" for path in archive_file.paths()))
    store.write_json(work / "manifest.json", found)


def _assemble(root: Path, work: Path, host_kernel: Kernel) -> Initramfs:
    fs = Initramfs()
    for path in _DIRECTORIES:
        fs.directory(path)
    for path, target in _LINKS.items():
        fs.symlink(path, target)
    for path in _FILES:
        fs.copy(root / path, path)
    _add_libraries(fs, root)
    fs.copy(root / _STDLIB, _STDLIB)
    fs.file("usr/bin/pyvmm", b'#!/bin/sh\nexec python3 -m pyvmm "$@"\n', 0o755)
    fs.character_device("dev/console", 5, 1)
    _add_configuration(fs, work)
    _add_modules(fs, host_kernel)
    return fs


def _add_libraries(fs: Initramfs, root: Path) -> None:
    directory = root / _LIBRARIES
    programs = [root / path for path in _FILES] + list((root / _STDLIB / "lib-dynload").iterdir())
    for name in sorted(elf.libraries(programs, directory).union(_LOADED_BY_NAME)):
        fs.file(f"{_LIBRARIES}/{name}", (directory / name).read_bytes(), 0o755)


def _add_configuration(fs: Initramfs, work: Path) -> None:
    for path, text in _CONFIGURATION.items():
        fs.file(path, text.encode())
    for path, source in _SCRIPTS.items():
        # lib is a symlink in the archive, so nothing may be unpacked through it.
        fs.file(
            f"usr/{path}" if path.startswith("lib/") else path,
            (Path(__file__).parent / source).read_bytes(),
            0o755,
        )
    fs.file("etc/ssh/host_key", (work / "host_key").read_bytes(), 0o600)
    fs.file("etc/ssh/authorized_keys", (work / "client_key.pub").read_bytes())


def _add_modules(fs: Initramfs, host_kernel: Kernel) -> None:
    tree = host_kernel.modules
    tree.install(fs, f"usr/lib/modules/{host_kernel.release}", (*HOST_MODULES, *HOST_MODULES_ON_DEMAND))
    fs.file("etc/modules", "".join(f"{name}\n" for name in tree.load_order(HOST_MODULES)).encode())


def _make_keys(work: Path) -> None:
    for name in ("host_key", "client_key"):
        _run(
            [
                *tools.command("ssh-keygen"),
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                "pyvmm-lab",
                "-f",
                str(work / name),
            ]
        )
    public = (work / "host_key.pub").read_text()
    (work / "known_hosts").write_text(f"lab {public}")


def _prune_stdlib(stdlib: Path) -> None:
    for path in [stdlib / name for name in _NOT_IN_STDLIB] + list(stdlib.glob("config-*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in (stdlib / "lib-dynload").iterdir():
        name = path.name.split(".")[0]
        if name in _NOT_IN_DYNLOAD or name.startswith(("_test", "_xx")):
            path.unlink()


def compile_packages(source: Path, strip: Path, shown_as: str) -> None:
    """Replace every .py below ``source`` by byte code, so that the slow host need not compile.

    Tracebacks name the files as if ``strip`` were ``shown_as``.
    """
    python = [*tools.command(f"python{tools.PYTHON}"), "-I", "-m", "compileall", "-q", "-b"]
    _run([*python, "-s", str(strip), "-p", shown_as, "--invalidation-mode", "unchecked-hash", str(source)])
    for path in source.rglob("*.py"):
        if path.with_suffix(".pyc").exists():
            path.unlink()


def _compress(data: bytes, target: Path) -> None:
    done = subprocess.run(
        [*tools.command("zstd"), "-q", "-12", "-T0", "-c"], input=data, capture_output=True, check=False
    )
    if done.returncode:
        raise HostError(
            f"zstd cannot compress the lab host's root file system: {done.stderr.decode().strip()}."
        )
    target.write_bytes(done.stdout)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise HostError(f"A step of the lab's build failed: {(done.stderr or done.stdout).strip()[-500:]}")
