# SPDX-License-Identifier: Apache-2.0
"""Users and groups of a Debian system whose maintainer scripts never ran.

From base-passwd's master files and systemd's sysusers.d(5), which say all that those scripts would do.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

_FIRST_SYSTEM_ID = 999  # and downwards, as systemd-sysusers counts


class Accounts:
    """The accounts so far. Passwords are locked, but for root, who needs none."""

    def __init__(self, passwd_master: str, group_master: str) -> None:
        self._users = [line.replace(":*:", ":x:", 1) for line in passwd_master.splitlines()]
        self._groups = [line.replace(":*:", ":x:", 1) for line in group_master.splitlines()]
        self._next = _FIRST_SYSTEM_ID

    def add_sysusers(self, text: str) -> None:
        """Add what a sysusers.d file asks for: users ("u") and groups ("g"); the rest is not accounts."""
        for line in text.splitlines():
            kind, name, number, *rest = (shlex.split(line, comments=True) + [""] * 6)[:6]
            if kind.rstrip("!") == "u" and not _has(self._users, name):
                self._add_user(name, number, *rest)
            elif kind == "g" and not _has(self._groups, name):
                self._add_group(name, self._id(number))

    def files(self) -> dict[str, str]:
        """/etc/passwd, group and shadow, by path."""
        names = [user.split(":")[0] for user in self._users]
        shadow = [f"{name}:{'' if name == 'root' else '*'}:20000:0:99999:7:::" for name in names]
        return {
            "etc/passwd": _lines(self._users),
            "etc/group": _lines(self._groups),
            "etc/shadow": _lines(shadow),
        }

    def _add_user(self, name: str, number: str, gecos: str, home: str, shell: str) -> None:
        own, _, group = number.partition(":")
        uid = self._id(own)
        if not group and not _has(self._groups, name):
            self._add_group(name, uid)
        gid = group or str(uid)
        shell = _given(shell, "/usr/sbin/nologin")
        self._users.append(f"{name}:x:{uid}:{gid}:{_given(gecos, '')}:{_given(home, '/')}:{shell}")

    def _add_group(self, name: str, gid: int) -> None:
        self._groups.append(f"{name}:x:{gid}:")

    def _id(self, number: str) -> int:
        return int(number) if number.isdigit() else self._free()

    def _free(self) -> int:
        taken = {int(entry.split(":")[2]) for entry in self._users + self._groups}
        while self._next in taken:
            self._next -= 1
        return self._next


def _has(entries: Iterable[str], name: str) -> bool:
    return any(entry.startswith(f"{name}:") for entry in entries)


def _given(word: str, default: str) -> str:
    return word if word not in ("", "-") else default


def _lines(entries: Iterable[str]) -> str:
    return "".join(f"{entry}\n" for entry in entries)
