# SPDX-License-Identifier: Apache-2.0
"""What one exit of a guest costs."""

from __future__ import annotations

import resource

from benchmarks import growth
from benchmarks.programs import Argv, Bench, Figures, seconds_to_end


def exits(bench: Bench) -> Figures:
    """CPU seconds an exit: how much more a run takes with more of them, divided by how many more.

    Stores also with more devices on the bus, which are not what is stored to.
    """
    counts = [int(path.suffix[1:]) for path in sorted(bench.directory.glob("stores.*"))]
    few, many = min(counts), max(counts)

    def measure(argv: Argv) -> float:
        more = cpu_seconds([*argv[:-1], f"{argv[-1]}.{many}"])
        less = cpu_seconds([*argv[:-1], f"{argv[-1]}.{few}"])
        return (more - less) / (many - few)

    programs = {}
    for access in ("stores", "loads"):
        image = str(bench.directory / access)
        programs[f"C, {access}"] = [str(bench.directory / "kvm_loop"), image]
        programs[f"pyvmm, {access}"] = bench.pyvmm("--console=serial", image)
    image = str(bench.directory / "stores")
    for count in growth.AXES[growth.DEVICES]:
        devices = growth.devices(count)
        subject = growth.name(growth.DEVICES, count, growth.STORE)
        programs[subject] = bench.pyvmm("--console=serial", "--virtio-transport=mmio", *devices, image)
    return bench.interleaved(measure, programs)


def cpu_seconds(argv: Argv) -> float:
    """The CPU time, guest's included, of a program that must succeed.

    Where instructions are counted this repeats best: what a program waits for takes the time it takes there.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds_to_end(argv)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
