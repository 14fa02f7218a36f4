# SPDX-License-Identifier: Apache-2.0
"""Where guests run: on this RISC-V host, or in the lab on any other machine. The rest cannot tell."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from pyvmm.cli.reach import Reach
from pyvmm.lab.host import RUN_DIR, Lab

SOCKETS = ("control", "agent")

# The kernel kills a child when the *thread* that started it ends. This one stays for as long as the process.
_starter = ThreadPoolExecutor(1, thread_name_prefix="pyvmm-start")


class Place(Protocol):
    """A host for guests. ``name`` is what people call it."""

    name: str
    emulated: bool

    def start(self) -> None:
        """Have the host. Raises HostError with a sentence when it cannot be had."""

    def run(self, argv: Sequence[str]) -> tuple[int, str]:
        """Run a program there; its status and output. ``pyvmm`` as the first word is this pyvmm."""

    def popen(self, words: Sequence[str], **how: Any) -> subprocess.Popen[bytes]:
        """Start ``pyvmm WORDS`` there; it ends when this process does."""

    def prepare(self, name: str, folder: Path, words: Sequence[str]) -> list[str]:
        """Have the sockets of the guest ``name`` in ``folder/name``, and what it listens on here.

        Returns what to start for ``pyvmm WORDS``.
        """

    def release(self, name: str, folder: Path) -> None:
        """The guest has ended: nothing of ``prepare`` is needed any more."""


class Here:
    """This very host."""

    name = "local"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.emulated = _is_emulated()

    def start(self) -> None:
        """It is here."""

    def run(self, argv: Sequence[str]) -> tuple[int, str]:
        if argv[0] == "pyvmm":
            argv = [*_pyvmm(), *argv[1:]]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    def popen(self, words: Sequence[str], **how: Any) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYVMM_RUN_DIR": str(self._folder)}
        command = [*_pyvmm(), *words]
        return _starter.submit(
            lambda: subprocess.Popen(command, env=environment, start_new_session=True, **how)
        ).result()

    def prepare(self, name: str, folder: Path, words: Sequence[str]) -> list[str]:
        del name, folder  # pyvmm makes the sockets itself
        return list(words)

    def release(self, name: str, folder: Path) -> None:
        """The guest's pyvmm removes them."""


class InLab:
    """A lab host of one flavour."""

    emulated = True

    def __init__(self, flavour: str) -> None:
        self.name = f"lab:{flavour}"
        self._lab = Lab(flavour)

    def start(self) -> None:
        self._lab.start()

    def run(self, argv: Sequence[str]) -> tuple[int, str]:
        if argv[0] == "pyvmm":
            argv = ["python3", "-m", *argv]
        process = _starter.submit(
            lambda: self._lab.popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        ).result()
        output, _ = process.communicate()
        return process.returncode, output.decode("utf-8", "replace")

    def popen(self, words: Sequence[str], **how: Any) -> subprocess.Popen[bytes]:
        argv = ["python3", "-m", "pyvmm", *words]
        return _starter.submit(lambda: self._lab.popen(argv, start_new_session=True, **how)).result()

    def prepare(self, name: str, folder: Path, words: Sequence[str]) -> list[str]:
        reach = Reach(words)
        reach.check()
        own = folder / name
        own.mkdir(mode=0o700)
        pairs = [(f"{own}/{kind}.sock", f"{RUN_DIR}/{name}/{kind}.sock") for kind in SOCKETS] + reach.pairs
        undo = [shlex.join(self._lab.cancel_command(*pair)) for pair in pairs]
        undo += [shlex.join(["rm", "-f", here]) for here, _ in reach.pairs if here.startswith("/")]
        # For the session's guardian, should this process be killed.
        (own / "undo").write_text("\n".join(undo) + "\n")
        for pair in pairs:
            self._lab.forward(*pair)
        return reach.words

    def release(self, name: str, folder: Path) -> None:
        own = folder / name
        if own.exists():
            subprocess.run(["sh", own / "undo"], capture_output=True, stdin=subprocess.DEVNULL, check=False)
            for path in list(own.iterdir()):
                path.unlink()
            own.rmdir()


def choose(where: str, folder: Path) -> Place:
    """The place that ``--vmm-host`` asks for: by itself this host when it is RISC-V, else the lab."""
    if where == "local" or (where == "auto" and os.uname().machine == "riscv64"):
        return Here(folder)
    return InLab(where.partition(":")[2] or "aia")


def _pyvmm() -> list[str]:
    return [sys.executable, "-m", "pyvmm.testing.child", str(os.getpid())]


def _is_emulated() -> bool:
    """Whether this host is QEMU's board: with a RISC-V guest inside, nothing but slow."""
    try:
        return b"riscv-virtio" in Path("/proc/device-tree/compatible").read_bytes()
    except OSError:
        return False
