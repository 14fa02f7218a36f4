# SPDX-License-Identifier: Apache-2.0
"""The machine's files in the lab, under the same paths.

The whole machine is shared at /machine. What the lab's own root lacks is taken from there: top-level
directories are bind-mounted (so that working directories keep their names), and inside the few directories
that both have (/usr, /etc, /var) missing children are linked. Programs and libraries are not: the machine's
are for another architecture.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable

# Reads and writes go straight to the machine, so that each side sees at once what the other wrote, also in
# files that are held open; only shared writable mappings, which cannot work otherwise, are cached.
_OPTIONS = "trans=virtio,version=9p2000.L,msize=1048576,cache=mmap,directio,access=any"
MOUNT = f"mount -t 9p -o {_OPTIONS} machine /machine"
# Where the two systems differ on purpose. A name ending in * stands for all that begin so.
_OWN = (
    "/bin", "/dev", "/init", "/lib", "/lib32", "/lib64", "/libx32", "/machine", "/proc", "/run", "/sbin",
    "/sys", "/usr/bin", "/usr/sbin", "/usr/lib32", "/usr/lib64", "/usr/libx32", "/usr/libexec",
    "/usr/lib/modules", "/usr/lib/python3*", "/usr/local/lib/python3*", "/etc/ld.so*", "/etc/python3*",
)  # fmt: skip

Listing = Callable[[str], list[tuple[str, str]]]
"""Children of a directory: name, and "d" (directory), "f" (file), or "l" and the target of a link."""


class Plan:
    """What to bind and what to link. ``binds`` are directories; ``links`` maps a path to its target."""

    def __init__(self) -> None:
        self.binds: list[str] = []
        self.links: dict[str, str] = {}

    def without(self, done: Iterable[str]) -> Plan:
        """What is left of the plan when the paths of ``done`` are in place."""
        there = set(done)
        rest = Plan()
        rest.binds = [path for path in self.binds if path not in there]
        rest.links = {path: target for path, target in self.links.items() if path not in there}
        return rest

    def paths(self) -> list[str]:
        """Every path that the plan puts in place."""
        return self.binds + list(self.links)

    def script(self) -> str:
        """Shell commands for the lab: few processes, since each costs some 20 ms there."""
        lines = []
        if self.binds:
            table = "".join(f"/machine{_octal(path)} {_octal(path)} none bind 0 0\n" for path in self.binds)
            lines.append(f"mkdir -p {shlex.join(self.binds)}")
            lines.append(f"cat >/run/lab/fstab <<'END'\n{table}END\nmount -a -T /run/lab/fstab")
        by_directory: dict[str, list[str]] = {}
        for path, target in self.links.items():
            if target == "/machine" + path:
                by_directory.setdefault(os.path.dirname(path), []).append(target)
            else:
                lines.append(f"ln -s -n {shlex.quote(target)} {shlex.quote(path)}")
        lines += [
            f"ln -s {shlex.join(targets)} {shlex.quote(path)}/" for path, targets in by_directory.items()
        ]
        return "".join(line + "\n" for line in lines)


def plan(lab_paths: Iterable[str], listing: Listing | None = None) -> Plan:
    """Compare the machine's tree with the lab's (``lab_paths``, relative to its root)."""
    result = Plan()
    own = {"/" + path for path in lab_paths}
    _merge("/", own, listing or list_directory, result)
    return result


def list_directory(path: str) -> list[tuple[str, str]]:
    """The machine's own Listing; a directory that may not be read is empty."""
    found = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_symlink():
                    found.append((entry.name, "l" + os.readlink(entry.path)))
                else:
                    found.append((entry.name, "d" if entry.is_dir() else "f"))
    except OSError:
        pass
    return sorted(found)


def _merge(directory: str, own: set[str], listing: Listing, result: Plan) -> None:
    for name, kind in listing(directory):
        path = os.path.join(directory, name)
        if _is_own(path):
            continue
        if path in own:
            if kind == "d":
                _merge(path, own, listing, result)
        elif directory == "/" and kind == "d":
            result.binds.append(path)
        else:
            result.links[path] = kind[1:] if kind[0] == "l" and directory == "/" else "/machine" + path


def _is_own(path: str) -> bool:
    return any(path == rule or (rule[-1] == "*" and path.startswith(rule[:-1])) for rule in _OWN)


def _octal(path: str) -> str:
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in path)
