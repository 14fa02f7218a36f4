# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks``: measure, print ratios, keep the raw figures."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyvmm
from benchmarks import images, peers, report
from pyvmm.errors import PyvmmError
from pyvmm.lab import guests
from pyvmm.lab.host import Lab
from pyvmm.lab.programs import programs
from pyvmm.lab.qemu import FLAVOURS

_ROOT = Path(__file__).parents[1]
_PROGRAMS = _ROOT / "tests/guest/programs"
_INSIDE = ["-m", "benchmarks.inside"]
_RESULTS = Path(__file__).with_name("results")
# Which host gives which figures: those of single exits repeat only where instructions are counted.
_MEASURES = {
    **dict.fromkeys(("start-up", "whole-run", "memory", "blk", "net", "console", "serial"), "aia"),
    "exits": "counting",
}
_FEW_EXITS, _MANY_EXITS = 2_000, 32_000


def main() -> int:
    """Measure what the command line asks for; figures decide nothing, so 0 also when a goal is missed."""
    options = _parser().parse_args()
    try:
        result = measure(options.measure or list(_MEASURES), options.rounds, options.flavour)
    except PyvmmError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(report.table(result["figures"]))
    sys.stdout.flush()
    _progress(f"the raw figures are in {options.output}")
    return 0


def measure(measures: list[str], rounds: int, flavour: str | None) -> dict[str, Any]:
    """Raw figures and rows of these measures, and what they were measured on.

    ``flavour`` is the lab host for all of them; by default each has the one that suits it.
    """
    kinds = {name: flavour or _MEASURES[name] for name in measures}
    figures: dict[str, Any] = {}
    hosts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="pyvmm-benchmarks-") as name:
        bundle = Path(name)
        _gather(bundle)
        for kind in dict.fromkeys(kinds.values()):
            chosen = [name for name in measures if kinds[name] == kind]
            _progress(f"measuring {', '.join(chosen)}")
            load = round(os.getloadavg()[0], 1)  # by others, but for what the run before left
            found = _run({"bundle": str(bundle), "rounds": rounds, "measures": chosen}, kind)
            figures.update(found["figures"])
            for measured in chosen:
                took = {"load before": load, "seconds": found["seconds"][measured]}
                hosts[measured] = {"flavour": kind, **found["host"], **took}
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "pyvmm": pyvmm.__version__,
        "guest kernel": guests.release(),
        "qemu": peers.qemu_version(),
        "hosts": hosts,
        "rows": report.rows(figures),
        "figures": figures,
    }


def _gather(bundle: Path) -> None:
    """All that the measured programs read, in one directory."""
    shutil.copyfile(guests.kernel(progress=_progress), bundle / "Image")
    shutil.copyfile(guests.initrd(progress=_progress), bundle / "initrd")
    loads = programs(_PROGRAMS)
    shutil.copytree(loads, bundle / "programs")
    full = guests.initrd(full=True, programs=loads, progress=_progress)
    shutil.copyfile(full, bundle / "initrd.full")
    shutil.copytree(peers.qemu(_progress), bundle / "qemu")
    shutil.copy(peers.kvm_loop(), bundle / "kvm_loop")
    for count in (_FEW_EXITS, _MANY_EXITS):
        (bundle / f"stores.{count}").write_bytes(images.stores(count))
        (bundle / f"loads.{count}").write_bytes(images.loads(count))


def _run(job: dict[str, Any], kind: str) -> dict[str, Any]:
    """Have ``inside.py`` do the job: here where KVM is RISC-V's, else in a lab host."""
    if platform.machine() == "riscv64":
        script = [sys.executable, *_INSIDE]
        done = subprocess.run(
            script, input=json.dumps(job), stdout=subprocess.PIPE, text=True, cwd=_ROOT, check=False
        )
        return _figures(done.stdout, done.returncode)
    lab = Lab(kind)
    ran_before = lab.status()["running"]
    with tempfile.TemporaryFile() as request, tempfile.TemporaryFile() as answer:
        request.write(json.dumps(job).encode())
        request.seek(0)
        try:
            command = ["python3", *_INSIDE]
            status = lab.run(
                command, cwd=str(_ROOT), tty=False, stdin=request, stdout=answer, progress=_progress
            )
        finally:
            if not ran_before:
                lab.stop()
        answer.seek(0)
        return _figures(answer.read().decode(), status)


def _figures(answer: str, status: int) -> dict[str, Any]:
    if status:
        raise PyvmmError(f"a measurement failed with exit status {status}")
    found: dict[str, Any] = json.loads(answer)
    return found


def _progress(text: str) -> None:
    print(f"benchmarks: {text}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument(
        "measure",
        nargs="*",
        choices=[*_MEASURES, []],  # argparse checks the empty list, too
        help=f"of {', '.join(_MEASURES)} [all]",
        metavar="MEASURE",
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of every program [3]")
    parser.add_argument("--flavour", choices=list(FLAVOURS), help="measure in this lab host only")
    parser.add_argument(
        "--output",
        type=Path,
        default=_RESULTS / "last.json",
        metavar="PATH",
        help="where raw figures go [benchmarks/results/last.json]",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
