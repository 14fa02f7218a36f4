# SPDX-License-Identifier: Apache-2.0
"""What one guest of pyvmm does under load: exits by reason and by device, and where its threads are."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from benchmarks import blk, console, net
from benchmarks.guest import PROMPT, Guest
from benchmarks.programs import PCI, QUIET, VIRTIO, Argv, Bench, running
from benchmarks.sampler import Sampled, sampled

Profile = dict[str, object]
_NAME = "profile"
BOOT = "boot to the shell"
_CONSOLE = "console, 1 MiB"
_TIMES = 3  # each load but the boot, so that there is enough to look at
_TRANSFERS = {
    "TCP tap, send": (net.TAP, net.SEND, "64M"),
    "TCP tap, receive": (net.TAP, net.RECEIVE, "64M"),
    "TCP passt, send": (net.USER, net.SEND, "32M"),
    "TCP passt, receive": (net.USER, net.RECEIVE, "32M"),
}
_COUNTED = ("exits", "accesses")


def profile(bench: Bench) -> dict[str, Profile]:
    """A boot, then loads one by one, in one guest with a disk, a card of each kind and a virtio console."""
    blk.fill(bench.image("pyvmm"))
    found: dict[str, Profile] = {}
    with net.server(bench), running(_guest(bench)) as process:
        guest = Guest(process)
        with _profiled(guest, found, BOOT, since={}):
            guest.read_until(PROMPT)
        blk.find_disk(guest, PCI)
        hosts = net.configure(guest, "pyvmm", 10)
        console.prepare(guest, console.SIZE)
        loads: dict[str, Callable[[], object]] = {
            blk.DEEP_READ: partial(blk.load, guest, *blk.LOADS[blk.DEEP_READ]),
            _CONSOLE: partial(console.bytes_a_second, guest, console.SIZE),
        }
        for name, (card, way, amount) in _TRANSFERS.items():
            loads[name] = partial(net.transfer, guest, way, hosts[card], amount)
        for name, load in loads.items():
            with _profiled(guest, found, name):
                for _ in range(_TIMES):
                    load()
    return found


def _guest(bench: Bench) -> Argv:
    words = [f"--name={_NAME}", f"--console={VIRTIO}", f"--disk={bench.image('pyvmm')}", *net.pyvmm_cards()]
    return bench.pyvmm_linux(QUIET[VIRTIO], *words, full=True)


@contextlib.contextmanager
def _profiled(
    guest: Guest, found: dict[str, Profile], name: str, since: Mapping[str, Mapping[str, int]] | None = None
) -> Iterator[None]:
    """Put what happens in the block into ``found``; ``since`` is what was counted before it."""
    before = _inspect() if since is None else since
    with sampled(guest.pid) as samples:
        yield
    found[name] = {**counted(before, _inspect()), **described(samples[0])}


def _inspect() -> dict[str, dict[str, int]]:
    command = [sys.executable, "-m", "pyvmm", "inspect", "--host=local", "--json", _NAME]
    found: dict[str, dict[str, int]] = json.loads(subprocess.check_output(command))
    return found


def counted(
    before: Mapping[str, Mapping[str, int]], after: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, int]]:
    """What was counted between two answers of ``pyvmm inspect``, without what was not."""
    return {
        what: {
            key: more
            for key, count in after[what].items()
            if (more := count - before.get(what, {}).get(key, 0))
        }
        for what in _COUNTED
    }


def described(samples: Sampled) -> Profile:
    """The samples for JSON: by function, then by state."""
    threads: dict[str, dict[str, int]] = {}
    for (state, function), count in samples.threads.items():
        threads.setdefault(function, {})[state] = count
    return {
        "looks": samples.looks,
        "seconds": samples.seconds,
        "sampler's cpu seconds": samples.cost,
        "threads": threads,
    }
