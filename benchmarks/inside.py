# SPDX-License-Identifier: Apache-2.0
"""Runs measurements on the RISC-V host: ``python3 -m benchmarks.inside``, standard library and pyvmm only.

Reads a job (JSON) from standard input, prints raw figures (JSON). Everything that a measured program reads is
in memory first: the lab's shared files would be part of the figures otherwise.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import blk, boot, console, exits, growth, idle, memory, net, profile
from benchmarks.programs import Bench, seconds_to_end
from pyvmm.kvm import uapi
from pyvmm.kvm.system import Kvm

MEASURES: dict[str, Callable[[Bench], Mapping[str, object]]] = {
    "start-up": boot.start_up,
    "whole-run": boot.whole_run,
    "many": boot.many,
    "memory": memory.memory,
    "idle": idle.idle,
    "exits": exits.exits,
    "blk": blk.blk,
    "net": net.net,
    "console": console.console,
    "serial": console.serial,
    "growth": growth.growth,
    "profile": profile.profile,
}


def host() -> dict[str, str]:
    """What the figures are measured on."""
    return {"kernel": platform.release(), "machine": platform.machine(), "python": platform.python_version()}


def has_aia() -> bool:
    """Whether KVM has interrupt controllers of its own here."""
    with Kvm() as kvm, kvm.create_vm() as vm:
        return bool(vm.check_extension(uapi.KVM_CAP_IRQCHIP))


def main() -> None:
    job = json.load(sys.stdin)
    figures, seconds = {}, {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        shutil.copytree(job["bundle"], directory, dirs_exist_ok=True)
        # Where python3 -m looks first; the lab's shared files would be part of the figures.
        os.chdir(directory)
        bench = Bench(directory, job["rounds"], aia=has_aia())
        seconds_to_end(bench.pyvmm_linux(boot.TO_POWER_OFF))  # what Python compiles once and keeps
        for measure in job["measures"]:
            start = time.monotonic()
            figures[measure] = MEASURES[measure](bench)
            seconds[measure] = round(time.monotonic() - start, 1)
        os.chdir("/")
    json.dump({"host": host(), "figures": figures, "seconds": seconds}, sys.stdout)


if __name__ == "__main__":
    main()
