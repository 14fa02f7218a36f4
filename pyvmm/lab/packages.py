# SPDX-License-Identifier: Apache-2.0
"""Debian packages without root and without touching the machine: its apt, under a private configuration.

apt does what it does best (mirrors, proxies, signatures, dependencies); it only sees other directories,
another architecture and other suites than the machine's own. Nothing is installed: packages are downloaded
and unpacked.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pyvmm.errors import ConfigError, HostError
from pyvmm.lab.store import Progress, quiet

MIRROR_VARIABLE = "PYVMM_DEBIAN_MIRROR"
_KEYRINGS = (
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
)
_APT_HELPER = "/usr/lib/apt/apt-helper"  # part of apt, in no PATH
_PACKAGE_FIELDS = ("Package", "Version", "Architecture", "Filename", "SHA256")
_INSTALLED = re.compile(r"^Inst (\S+) \((\S+) ", re.MULTILINE)
_FIELDS = re.compile(r"^([A-Z][\w-]*): (.*)$", re.MULTILINE)
# The machine's settings that decide how a mirror is reached are kept, all others are not ours.
_KEPT_SETTINGS = re.compile(r"^Acquire::(https?|socks|Retries|ForceIPv[46]|Connect)\b.*[^:] \".+\";$")


class Package:
    """One binary package in one version; ``path`` is its file's, relative to the mirror."""

    __slots__ = ("architecture", "name", "path", "sha256", "version")

    def __init__(self, name: str, version: str, architecture: str, path: str, sha256: str) -> None:
        self.name = name
        self.version = version
        self.architecture = architecture
        self.path = path
        self.sha256 = sha256

    def __repr__(self) -> str:
        return f"Package({self.name}={self.version}:{self.architecture})"

    @property
    def filename(self) -> str:
        """The name apt gives the downloaded file."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"

    def manifest(self) -> dict[str, str]:
        """What manifests and pins say about it: what it is made from again."""
        return {name: getattr(self, name) for name in ("name", "version", "architecture", "path", "sha256")}


def require_commands() -> None:
    """Raise ConfigError when the machine lacks what every build needs."""
    missing = [name for name in ("apt-get", "apt-cache", "apt-config", "dpkg-deb") if not shutil.which(name)]
    if missing:
        raise ConfigError(
            f"Building the lab needs {' and '.join(missing)}, which this machine does not have; "
            "build it on Debian 12 or newer (amd64)."
        )


def keyring() -> Path:
    """The Debian archive's public keys, as installed on this machine."""
    for name in _KEYRINGS:
        if os.path.exists(name):
            return Path(name)
    raise ConfigError("The Debian archive's keys are not on this machine; install debian-archive-keyring.")


def mirror() -> str:
    """The Debian mirror this machine uses, as a URI without the final slash.

    ``$PYVMM_DEBIAN_MIRROR`` overrides it. Raises ConfigError when the machine's sources name no mirror of
    Debian.
    """
    override = os.environ.get(MIRROR_VARIABLE)
    if override:
        return override.rstrip("/")
    out = subprocess.run(
        ["apt-get", "update", "--print-uris"], capture_output=True, text=True, check=False
    ).stdout
    found = pick_mirror(out, _codename())
    if not found:
        raise ConfigError(
            f"The machine's package sources name no mirror of Debian; set {MIRROR_VARIABLE} to one."
        )
    return found


def pick_mirror(print_uris: str, codename: str) -> str | None:
    """The archive that serves the suite ``codename``, from the output of ``apt-get update --print-uris``."""
    indexes = re.findall(r"^'([^']+)/dists/([^']+?)/(?:In)?Release'", print_uris, re.MULTILINE)
    for uri, suite in indexes:
        if suite in (codename, "stable", "oldstable", "testing", "unstable", "sid"):
            return str(uri)
    return None


def _codename() -> str:
    try:
        text = Path("/etc/os-release").read_text()
    except OSError:
        return ""
    ids = re.search(r"^ID=\"?(\w+)", text, re.MULTILINE)
    name = re.search(r"^VERSION_CODENAME=\"?(\w+)", text, re.MULTILINE)
    return name[1] if name and ids and ids[1] == "debian" else ""


class Archive:
    """One suite of the Debian archive for one architecture; ``directory`` is for apt's own files.

    ``expired_ok`` accepts a Release file past its date (its signature is checked all the same).
    """

    def __init__(self, directory: Path, suite: str, architecture: str, *, expired_ok: bool = False) -> None:
        self.suite = suite
        self.architecture = architecture
        self._environment = _configure(directory, architecture, expired_ok=expired_ok)
        (directory / "etc/sources.list.d/lab.sources").write_text(
            f"Types: deb\nURIs: {mirror()}\nSuites: {suite}\nComponents: main\nSigned-By: {keyring()}\n"
        )

    def update(self) -> None:
        """Fetch and verify the suite's index. Raises HostError with apt's first complaint."""
        self._run("apt-get", "-o", "APT::Update::Error-Mode=any", "update")

    def resolve(self, names: Sequence[str]) -> list[Package]:
        """The named packages and all they depend on, in the archive's newest versions."""
        out = self._run("apt-get", "install", "-qq", "--simulate", *names)
        return self.select([f"{name}={version}" for name, version in _INSTALLED.findall(out)])

    def select(self, names: Sequence[str]) -> list[Package]:
        """Just the named packages (``NAME`` or ``NAME=VERSION``), in the archive's newest versions."""
        return [Package(*(fields[field] for field in _PACKAGE_FIELDS)) for fields in self._show(names)]

    def depends(self, name: str) -> list[str]:
        """Names that ``name`` depends on directly (every alternative of an or-group)."""
        field = self._show([name])[0].get("Depends", "")
        return [word.split()[0].split(":")[0] for word in re.split(r"[,|]", field) if word.strip()]

    def fetch(self, packages: Sequence[Package], directory: Path, progress: Progress = quiet) -> list[Path]:
        """Download ``packages`` into ``directory``; apt checks each against the signed index."""
        directory.mkdir(parents=True, exist_ok=True)
        wanted = [f"{p.name}:{p.architecture}={p.version}" for p in packages]
        with slow_progress(f"downloading {len(packages)} packages ({self.suite})", progress) as descriptor:
            status = ("-o", f"APT::Status-Fd={descriptor}")
            self._run("apt-get", "download", "-qq", *status, *wanted, cwd=directory, keep=descriptor)
        return [directory / p.filename for p in packages]

    def _show(self, names: Sequence[str]) -> list[dict[str, str]]:
        out = self._run("apt-cache", "show", "--no-all-versions", *names)
        return [dict(_FIELDS.findall(entry)) for entry in out.strip().split("\n\n")]

    def _run(self, *command: str, cwd: Path | None = None, keep: int | None = None) -> str:
        try:
            return _run(command, self._environment, cwd, keep)
        except HostError as e:
            raise HostError(f"Debian's {self.suite} ({self.architecture}) cannot be used now: {e}.") from None


def download(
    packages: Sequence[Package], suite: str, scratch: Path, progress: Progress = quiet
) -> list[Path]:
    """Download exactly these packages from the mirror's pool, each checked by its SHA-256, without an index.

    They land below ``scratch``. Raises HostError with apt's first complaint when one of them cannot be had.
    """
    environment = _configure(scratch / "apt", packages[0].architecture)
    directory = scratch / "debs"
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / p.filename for p in packages]
    base = mirror()
    files = [
        word
        for package, path in zip(packages, paths, strict=True)
        for word in (f"{base}/{package.path}", str(path), f"SHA256:{package.sha256}")
    ]
    with slow_progress(f"downloading {len(packages)} packages ({suite})", progress) as descriptor:
        status = ("-o", f"APT::Status-Fd={descriptor}")
        _run((_APT_HELPER, *status, "download-file", *files), environment, keep=descriptor)
    return paths


def _run(
    command: Sequence[str], environment: Mapping[str, str], cwd: Path | None = None, keep: int | None = None
) -> str:
    done = subprocess.run(
        command,
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        pass_fds=() if keep is None else (keep,),
    )
    if done.returncode:
        raise HostError(complaint(done.stderr))
    return done.stdout


def _configure(directory: Path, architecture: str, *, expired_ok: bool = False) -> dict[str, str]:
    """Make a private configuration of apt, with no sources yet; returns the environment that selects it."""
    directory = directory.absolute()
    for part in (
        "etc/apt.conf.d",
        "etc/preferences.d",
        "etc/sources.list.d",
        "lists/partial",
        "cache/archives/partial",
    ):
        (directory / part).mkdir(parents=True, exist_ok=True)
    (directory / "status").touch()
    (directory / "etc/sources.list").touch()
    (directory / "apt.conf").write_text(_apt_conf(directory, architecture, expired_ok))
    return {**os.environ, "APT_CONFIG": str(directory / "apt.conf"), "LC_ALL": "C.UTF-8"}


def _apt_conf(directory: Path, architecture: str, expired_ok: bool) -> str:
    # APT_CONFIG is read before the machine's own files, so moving Dir::Etc away keeps all of those out.
    settings = {
        "Dir::Etc": directory / "etc",
        "Dir::State": directory,
        "Dir::State::lists": directory / "lists",
        "Dir::State::status": directory / "status",
        "Dir::Cache": directory / "cache",
        "Dir::Log": directory,
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",
        "APT::Install-Recommends": "false",
        "Acquire::Languages": "none",
        "Acquire::Check-Valid-Until": "false" if expired_ok else "true",
        "Acquire::Retries": "3",
        "Dir::Etc::netrc": "/etc/apt/auth.conf",
        "Dir::Etc::netrcparts": "/etc/apt/auth.conf.d",
    }
    own = "".join(f'{name} "{value}";\n' for name, value in settings.items())
    return own + _machine_settings()


def _machine_settings() -> str:
    out = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    return "".join(line + "\n" for line in out.splitlines() if _KEPT_SETTINGS.match(line))


def complaint(stderr: str) -> str:
    """The first error apt printed, without its prefix and final stop."""
    lines = [line[3:].strip() for line in stderr.splitlines() if line.startswith("E: ")]
    return (lines or ["apt failed and did not say why"])[0].rstrip(".")


@contextlib.contextmanager
def slow_progress(what: str, progress: Progress, interval: float = 10.0) -> Iterator[int]:
    """A descriptor for apt's status lines; ``progress`` hears ``what`` is done, and regularly how far it is.

    ``interval`` is in seconds.
    """
    progress(what)
    reader, writer = os.pipe()
    thread = threading.Thread(target=_report, args=(reader, what, progress, interval))
    thread.start()
    try:
        yield writer
    finally:
        os.close(writer)
        thread.join()


def _report(reader: int, what: str, progress: Progress, interval: float) -> None:
    due = time.monotonic() + interval
    with open(reader) as lines:
        for line in lines:
            if line.startswith("dlstatus:") and time.monotonic() >= due:
                progress(f"{what}: {float(line.split(':')[2]):.0f}%")
                due = time.monotonic() + interval


def unpack(debs: Iterable[Path], root: Path) -> None:
    """Unpack packages into ``root``, which gets the merged-/usr links. No maintainer script runs."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    for deb in debs:
        _unpack_one(deb, root)


def _unpack_one(deb: Path, root: Path) -> None:
    # tar would replace the links by directories for the few packages that still ship /lib and the like.
    tar = [
        "tar",
        "-x",
        "--keep-directory-symlink",
        "--no-same-owner",
        "--no-same-permissions",
        "-C",
        str(root),
    ]
    # Leaving the context closes our end of the pipe, so that dpkg-deb ends when tar does.
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as source:
        done = subprocess.run(tar, stdin=source.stdout, capture_output=True, text=True, check=False)
    if source.returncode or done.returncode:
        raise HostError(
            f"The package {deb.name} cannot be unpacked: {done.stderr.strip() or 'dpkg-deb failed'}."
        )
