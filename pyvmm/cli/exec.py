# SPDX-License-Identifier: Apache-2.0
"""``pyvmm exec``: boot a guest, run a command in it, and end as the command did."""

from __future__ import annotations

import os

from pyvmm import guest
from pyvmm.cli import run
from pyvmm.cli.options import resolved
from pyvmm.cli.parser import Command, Option, UsageError
from pyvmm.cli.say import say
from pyvmm.config import MachineConfig

_ROOT_TAG = "root"

COMMAND = Command(
    "exec",
    "Boot a guest, run a command in it, and exit with its status. Standard input, output and error are the\n"
    "command's. With --disk or --rootfs the command runs there, else in a busybox initramfs or --initrd.\n"
    "Where no KERNEL is named, it is Debian's, with the drivers of its devices and then 512M of memory.\n"
    "A KERNEL of your own has its drivers built in, or in its --initrd.",
    (
        Option(
            "--rootfs",
            key="rootfs",
            metavar="DIR[,rw]",
            group="Boot",
            help="this folder is the guest's root file system, by 9P",
        ),
        *(option for option in run.COMMAND.options if option.key not in ("agent", "on_reboot")),
    ),
    positional=("kernel", "KERNEL"),
    rest="command",
    refused=run.COMMAND.refused,
    prefixes=run.COMMAND.prefixes,
)


def main(words: list[str]) -> int:
    """Run the command in the guest; the exit code is its status."""
    values, source = resolved(COMMAND.parse(words))
    command = values.pop("command")
    assert isinstance(command, list)
    values["agent"] = True
    values["on_reboot"] = "exit"  # a guest that reboots does not come back to the command
    _add_root(values)
    if "dry_run" in values:
        from pyvmm.cli.dryrun import dry_run

        return dry_run(values)
    where = values.pop("host", "auto")
    name = run.checked_name(values.pop("name", None))
    verbose = bool(values.pop("verbose", False))
    quiet = bool(values.pop("quiet", False))
    if source is not None and verbose:
        say(f"with the options in {source}")
    # What is said here stands between the command's own words, so it is said only where somebody waits.
    _add_debian_guest(values, quiet=quiet or not (verbose or os.isatty(2)))
    config = MachineConfig(**values)  # type: ignore[arg-type]  # checked field by field there
    if where == "local" or (where == "auto" and os.uname().machine == "riscv64"):
        from pyvmm.cli.executing import execute

        return execute(config, name, command, verbose=verbose)
    from pyvmm.cli.in_lab import run_in_lab

    talk = {key: True for key, wanted in (("verbose", verbose), ("quiet", quiet)) if wanted}
    if name is not None:
        values["name"] = name
    passed = {**values, **talk, "host": "local", "no_config": True, "command": command}
    # A terminal there makes one stream of the two outputs: right only when a terminal shows both here.
    tty = all(os.isatty(fd) for fd in (0, 1, 2))
    quiet = quiet or not (verbose or os.isatty(2))
    return run_in_lab(["exec", *COMMAND.words(passed)], config, str(where), quiet=quiet, tty=tty)


def _add_root(values: dict[str, object]) -> None:
    """Say where the guest's root file system is, and have it start no services, unless it was told to."""
    words = str(values.get("params", "")).split()
    own_init = "initrd" in values or _has(words, "init=")
    folder = values.pop("rootfs", None)
    if folder is not None:
        path, comma, flag = str(folder).rpartition(",")
        path, mode = (path, flag) if comma and flag in ("ro", "rw") else (str(folder), "ro")
        if not os.path.isdir(path):
            wrong = "is not a folder" if os.path.exists(path) else "does not exist"
            raise UsageError(f"--rootfs {folder}: {path} {wrong}; give the guest's root folder.")
        shares = values.get("p9", [])
        assert isinstance(shares, list)
        values["p9"] = [*shares, f"{path},{_ROOT_TAG}" + (",rw" if mode == "rw" else "")]
        words = [f"root={_ROOT_TAG}", "rootfstype=9p", mode, *words]
    elif values.get("disks") and "initrd" not in values and not _has(words, "root="):
        disks = values["disks"]
        assert isinstance(disks, list)
        words = ["root=/dev/vda", "ro" if "ro" in disks[0].split(",")[1:] else "rw", *words]
    if not own_init:
        words.insert(0, f"init=/{guest.PROGRAM}")
    values["params"] = " ".join(words)


def _add_debian_guest(values: dict[str, object], *, quiet: bool) -> None:
    """What was not named: Debian's kernel, and an initramfs where the command would have nowhere to run."""
    if values.get("firmware") is not None:
        raise UsageError("pyvmm exec needs a kernel: firmware cannot bring the agent that runs the command.")
    rooted = _has(str(values.get("params", "")).split(), "root=")
    needs_kernel = values.get("kernel") is None
    needs_initrd = "initrd" not in values and not rooted
    if not needs_kernel and not needs_initrd:
        return
    from pyvmm import preview
    from pyvmm.cli import debian
    from pyvmm.cli.in_lab import no_progress, progress

    config = MachineConfig(**values)  # type: ignore[arg-type]
    (preview.check_machine if needs_kernel else preview.check)(config)  # before anything is fetched
    show_progress = no_progress if quiet else progress
    if needs_kernel:
        debian.add(values, show_progress)
    else:  # whose drivers are in no initramfs of ours
        from pyvmm.lab import guests

        values["initrd"] = str(guests.initrd(progress=show_progress))


def _has(words: list[str], prefix: str) -> bool:
    return any(word.startswith(prefix) for word in words)
