# SPDX-License-Identifier: Apache-2.0
"""Debian packages without root and without touching the machine: its apt, under a private configuration.

apt does what it does best (mirrors, proxies, signatures, dependencies); it only sees other directories,
another architecture and other suites than the machine's own. Nothing is installed: packages are downloaded
and unpacked.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pyvmm.errors import ConfigError, HostError
from pyvmm.lab.store import Progress, quiet

MIRROR_VARIABLE = "PYVMM_DEBIAN_MIRROR"
_KEYRINGS = (
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
)
# The machine's settings that decide how a mirror is reached are kept, all others are not ours.
_KEPT_SETTINGS = re.compile(r"^Acquire::(https?|socks|Retries|ForceIPv[46]|Connect)\b.*[^:] \".+\";$")


class Package:
    """One binary package in one version; ``sha256`` is known once it was downloaded."""

    __slots__ = ("architecture", "name", "sha256", "version")

    def __init__(self, name: str, version: str, architecture: str) -> None:
        self.name = name
        self.version = version
        self.architecture = architecture
        self.sha256 = ""

    def __repr__(self) -> str:
        return f"Package({self.name}={self.version}:{self.architecture})"

    @property
    def filename(self) -> str:
        """The name apt gives the downloaded file."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"

    def manifest(self) -> dict[str, str]:
        """What the manifest of a build says about it."""
        return {
            "name": self.name,
            "version": self.version,
            "architecture": self.architecture,
            "sha256": self.sha256,
        }


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
    """One suite of the Debian archive for one architecture.

    ``expired_ok`` accepts a Release file past its date (its signature is checked all the same).
    """

    def __init__(self, directory: Path, suite: str, architecture: str, *, expired_ok: bool = False) -> None:
        self.suite = suite
        self.architecture = architecture
        self._environment = {**os.environ, "APT_CONFIG": str(directory / "apt.conf"), "LC_ALL": "C.UTF-8"}
        self._configure(directory, expired_ok)

    def update(self) -> None:
        """Fetch and verify the suite's index. Raises HostError with apt's first complaint."""
        self._apt("-o", "APT::Update::Error-Mode=any", "update")

    def resolve(self, names: Sequence[str]) -> list[Package]:
        """The named packages and all they depend on, in the archive's newest versions."""
        out = self._apt("install", "-qq", "--simulate", *names)
        found = re.findall(r"^Inst (\S+) \((\S+) .*\[(\w+)\]\)", out, re.MULTILINE)
        return [Package(*match) for match in found]

    def select(self, names: Iterable[str]) -> list[Package]:
        """Just the named packages, in the archive's newest versions."""
        return [self._newest(name) for name in names]

    def depends(self, name: str) -> list[str]:
        """Names that ``name`` depends on directly (every alternative of an or-group)."""
        field = self._show(name).get("Depends", "")
        return [word.split()[0].split(":")[0] for word in re.split(r"[,|]", field) if word.strip()]

    def fetch(self, packages: Sequence[Package], directory: Path, progress: Progress = quiet) -> list[Path]:
        """Download ``packages`` into ``directory``; apt checks each against the signed index."""
        directory.mkdir(parents=True, exist_ok=True)
        what = f"downloading {len(packages)} packages ({self.suite}, {self.architecture})"
        progress(what)
        wanted = [f"{p.name}:{p.architecture}={p.version}" for p in packages]
        with slow_progress(what, progress) as descriptor:
            status = ("-o", f"APT::Status-Fd={descriptor}")
            self._apt("download", "-qq", *status, *wanted, cwd=directory, keep=descriptor)
        paths = [directory / p.filename for p in packages]
        for package, path in zip(packages, paths, strict=True):
            package.sha256 = _sha256(path)
        return paths

    def _newest(self, name: str) -> Package:
        fields = self._show(name)
        return Package(name, fields["Version"], fields["Architecture"])

    def _show(self, name: str) -> dict[str, str]:
        out = self._run(["apt-cache", "show", "--no-all-versions", name])
        return dict(re.findall(r"^([A-Z][\w-]*): (.*)$", out, re.MULTILINE))

    def _apt(self, *arguments: str, cwd: Path | None = None, keep: int | None = None) -> str:
        return self._run(["apt-get", *arguments], cwd, keep)

    def _run(self, command: list[str], cwd: Path | None = None, keep: int | None = None) -> str:
        done = subprocess.run(
            command,
            env=self._environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
            pass_fds=() if keep is None else (keep,),
        )
        if done.returncode:
            raise HostError(
                f"Debian's {self.suite} ({self.architecture}) cannot be used now: {complaint(done.stderr)}."
            )
        return done.stdout

    def _configure(self, directory: Path, expired_ok: bool) -> None:
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
        (directory / "etc/sources.list.d/lab.sources").write_text(
            f"Types: deb\nURIs: {mirror()}\nSuites: {self.suite}\nComponents: main\nSigned-By: {keyring()}\n"
        )
        (directory / "apt.conf").write_text(_apt_conf(directory, self.architecture, expired_ok))


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
    """A descriptor for apt's status lines; ``progress`` hears every ``interval`` seconds how far it is."""
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
