# SPDX-License-Identifier: Apache-2.0
"""Debian's riscv64 kernels, as flat Images with the modules that matter: for the lab host and for guests."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pyvmm.errors import ConfigError, HostError
from pyvmm.lab import modules, store
from pyvmm.lab.modules import ModuleTree
from pyvmm.lab.packages import Archive, Package, unpack
from pyvmm.lab.pins import SUITE, Request
from pyvmm.lab.store import Progress, quiet

# Where to look for a series, in order. Suites that move daily are often past their date on a mirror.
_SUITES = {
    "7": (("trixie-backports", True), ("sid", True), ("forky", True)),
    "6.12": ((SUITE, False),),
}
HOST_MODULES = (
    "kvm", "virtio_net", "virtio_rng", "9pnet_virtio", "9p", "tun", "vhost_net", "vhost_vsock", "loop",
)  # fmt: skip
HOST_MODULES_ON_DEMAND = ("ext4", "null_blk")
GUEST_MODULES = (
    "virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "virtio_balloon", "virtio_console",
    "9pnet_virtio", "9p", "virtiofs", "vmw_vsock_virtio_transport", "uio_pci_generic", "ext4", "virtio_input",
    "evdev",
)  # fmt: skip
_KEPT_MODULES = HOST_MODULES + HOST_MODULES_ON_DEMAND + GUEST_MODULES
_PARTS = ("linux-image-", "linux-binary-", "linux-modules-")


class Kernel:
    """A kernel in the cache."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        manifest = store.read_json(directory / "manifest.json") or {}
        self.release: str = manifest.get("release", "")
        self.manifest: dict[str, object] = manifest

    @property
    def image(self) -> Path:
        """The flat Image."""
        return self.directory / "Image"

    @property
    def modules(self) -> ModuleTree:
        """Its modules, for the host and for guests."""
        return ModuleTree(self.directory / "modules")


def kernel(series: str, progress: Progress = quiet) -> Kernel:
    """The newest kernel of a series ("7" or "6.12"), downloaded on first use.

    Raises ConfigError for another series, HostError when no suite can deliver it now.
    """
    if series not in REQUESTS:
        raise ConfigError(f"There is no kernel series {series!r}; there are {' and '.join(REQUESTS)}.")
    key = store.recipe_key(REQUESTS[series], _KEPT_MODULES, modules.SOFT_DEPENDENCIES)
    return Kernel(
        store.build_once(f"kernels/{series}-{key}", lambda work: _build(series, work, progress), progress)
    )


def _packages(series: str, archive: Archive, names: Sequence[str]) -> list[Package]:
    """What the metapackage leads to, as far as it is kernel and modules: one package or several."""
    found: list[str] = []
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.append(name)
            todo += [other for other in archive.depends(name) if other.startswith(_PARTS)]
    packages = archive.select(found)
    version = packages[0].version
    if not version.startswith(f"{series}."):
        raise HostError(f"Debian's {archive.suite} has Linux {version}, not {series}.")
    return packages


REQUESTS = {
    series: Request(f"kernels/{series}", ("linux-image-riscv64",), partial(_packages, series), suites=suites)
    for series, suites in _SUITES.items()
}


def _build(series: str, work: Path, progress: Progress) -> None:
    with store.scratch(work) as temp:
        debs, found = REQUESTS[series].fetch(temp, progress)
        root = temp / "root"
        unpack(debs, root)
        release = next((root / "usr/lib/modules").iterdir()).name
        shutil.copyfile(_image(root, release), work / "Image")
        _keep_modules(root / "usr/lib/modules" / release, work / "modules")
    store.write_json(work / "manifest.json", {"release": release, **found})


def _image(root: Path, release: str) -> Path:
    for candidate in (
        root / f"usr/lib/modules/{release}/vmlinuz",
        root / f"boot/vmlinux-{release}",
        root / f"boot/vmlinuz-{release}",
    ):
        if candidate.exists():
            return candidate
    raise HostError(f"The package of Linux {release} holds no kernel image where one is expected.")


def _keep_modules(source: Path, target: Path) -> None:
    tree = ModuleTree(source)
    target.mkdir()
    for name in tree.load_order(_KEPT_MODULES):
        (target / f"{name}.ko").write_bytes(tree.content(name))
