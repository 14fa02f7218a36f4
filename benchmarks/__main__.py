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
from benchmarks import chart, comparisons, images, peers, report
from pyvmm.errors import PyvmmError
from pyvmm.lab import guests
from pyvmm.lab.host import Lab
from pyvmm.lab.programs import programs
from pyvmm.lab.qemu import FLAVOURS

_ROOT = Path(__file__).parents[1]
_PROGRAMS = _ROOT / "tests/guest/programs"
_INSIDE = ["-m", "benchmarks.inside"]
_RESULTS = Path(__file__).with_name("results")
# Which lab hosts give which figures; further ones are figures of their own. Those of single exits repeat only
# where instructions are counted, and disks interrupt in another way where KVM has no interrupt controller.
MEASURES = {
    **dict.fromkeys(("start-up", "whole-run", "many", "memory", "idle"), ("aia",)),
    "blk": ("aia", "plic"),
    **dict.fromkeys(("net", "console", "serial", "growth"), ("aia",)),
    "exits": ("counting",),
    "profile": ("aia",),
}
# What has no ratios, and is made by name.
_NOT_USUAL = {"profile"}
HERE = platform.machine() == "riscv64"
_FEW_EXITS, _MANY_EXITS = 2_000, 32_000


def main() -> int:
    """Measure what the command line asks for; figures decide nothing, so 0 also when a goal is missed."""
    options = _parser().parse_args()
    try:
        result = measure(options)
    except PyvmmError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    rows = comparisons.rows(result["figures"])
    result["rows"] = [row.data() for row in rows]
    picture = options.output.with_suffix(".svg")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    picture.write_text(chart.svg(rows))
    figures = result["figures"]
    tables = [report.table(rows), report.growth_table(figures), report.profiles(figures)]
    print(*filter(None, tables), sep="\n\n", flush=True)
    _progress(f"the raw figures are in {options.output}, the ratios drawn in {picture}")
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Raw figures of the measures asked for, and what they were measured on."""
    figures: dict[str, Any] = {}
    measured_on: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="pyvmm-benchmarks-") as directory:
        bundle = Path(directory)
        _gather(bundle, options.lkvm)
        for kind, chosen in hosts(options.measure or _usual(), options.flavour).items():
            _progress(f"measuring {', '.join(chosen)} ({kind})")
            load = round(os.getloadavg()[0], 1)  # by others, but for what the run before left
            found = _run({"bundle": str(bundle), "rounds": options.rounds, "measures": chosen}, kind)
            for name in chosen:
                where = comparisons.at(name, place(name, kind))
                figures[where] = found["figures"][name]
                took = {"load before": load, "seconds": found["seconds"][name]}
                measured_on[where] = {"flavour": kind, **found["host"], **took}
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "pyvmm": pyvmm.__version__,
        "guest kernel": guests.release(),
        "qemu": peers.qemu_version(),
        "hosts": measured_on,
        "figures": figures,
    }


def hosts(measures: list[str], flavour: str | None) -> dict[str, list[str]]:
    """What to measure in which lab host, by default in each that suits; or all of it here (HERE)."""
    found: dict[str, list[str]] = {}
    for name in measures:
        for kind in ("local",) if HERE else (flavour,) if flavour else MEASURES[name]:
            found.setdefault(kind, []).append(name)
    return found


def _usual() -> list[str]:
    return [name for name in MEASURES if name not in _NOT_USUAL]


def place(measured: str, kind: str) -> str:
    """The host's name where it is not the usual one of that measure."""
    return "" if HERE or kind == MEASURES[measured][0] else kind


def _gather(bundle: Path, lkvm: Path | None) -> None:
    """All that the measured programs read, in one directory."""
    if lkvm:
        shutil.copy(lkvm, bundle / "lkvm")
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
    if HERE:
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
        choices=[*MEASURES, []],  # argparse checks the empty list, too
        help=f"of {', '.join(MEASURES)} [all but {', '.join(_NOT_USUAL)}]",
        metavar="MEASURE",
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of every program [3]")
    parser.add_argument("--flavour", choices=list(FLAVOURS), help="measure in this lab host only")
    parser.add_argument("--lkvm", type=_program, metavar="PATH", help="measure this kvmtool for RISC-V, too")
    parser.add_argument(
        "--output",
        type=Path,
        default=_RESULTS / "last.json",
        metavar="PATH",
        help="where raw figures go, and a chart beside them [benchmarks/results/last.json]",
    )
    return parser


def _program(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return path


if __name__ == "__main__":
    sys.exit(main())
