# SPDX-License-Identifier: Apache-2.0
"""TCP between a guest and its host, each way and to and fro, over taps and over user mode.

Each guest has one card of each kind. User mode is passt for pyvmm, and slirp for QEMU.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from benchmarks.guest import Guest, booted
from benchmarks.programs import QEMU_CONSOLES, QUIET, SERIAL, Argv, Bench, Figures, interleaved

VHOST, TAP, USER = "vhost", "tap", "user"
SEND, RECEIVE = "send", "receive"  # as the guest sees it
REQUESTS = "requests"
_CARDS = (VHOST, TAP, USER)  # eth0, eth1, eth2
_MIB = {VHOST: 64, TAP: 48, USER: 16}  # a second or so each
_REQUESTS = "200"  # some seconds
_PORT = 7011
_RESULT = re.compile(r" ok, ([0-9.]+) (MiB)?/s")
_MIB_SIZE = 1 << 20


def net(bench: Bench) -> Figures:
    """Bytes a second, checked by a sum at each end; over taps also requests of a byte, one by one."""
    with server(bench), booted(_pyvmm(bench)) as guest, booted(_qemu(bench)) as peer:
        guests = {"pyvmm": guest, "qemu": peer}
        hosts = {"pyvmm": configure(guest, "pyvmm", 10), "qemu": configure(peer, "qemu", 20)}
        runs = {
            f"{program}, {card}, {load}": partial(transfer, one, load, hosts[program][card], amount)
            for card, loads in _loads().items()
            for load, amount in loads.items()
            for program, one in guests.items()
        }
        return interleaved(bench.rounds, runs)


def _loads() -> dict[str, dict[str, str]]:
    """For each card, netload's names for what is measured, and how much of it."""
    loads = {card: dict.fromkeys((SEND, RECEIVE), f"{mib}M") for card, mib in _MIB.items()}
    for card in (VHOST, TAP):
        loads[card][REQUESTS] = _REQUESTS
    return loads


@contextlib.contextmanager
def server(bench: Bench) -> Iterator[None]:
    """netload on the host, for any number of connections."""
    command = [str(bench.directory / "programs/netload"), "serve", str(_PORT), "1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if b"listening" not in process.stdout.readline():
            sys.exit("netload does not listen on the host")
        try:
            yield
        finally:
            process.kill()


def _tap(program: str, card: str) -> str:
    return f"{program}-{card}"


def _mac(card: str) -> str:
    return f"52:54:00:00:00:0{_CARDS.index(card) + 1}"


def _pyvmm(bench: Bench) -> Argv:
    return bench.pyvmm_linux(QUIET[SERIAL], "--console=serial", *pyvmm_cards(), full=True)


def pyvmm_cards() -> Argv:
    """The words that give a guest of pyvmm one card of each kind."""
    cards = {
        VHOST: f"tap,tap={_tap('pyvmm', VHOST)},vhost=on",
        TAP: f"tap,tap={_tap('pyvmm', TAP)},vhost=off",
        USER: "user",
    }
    return [f"--network={cards[card]},mac={_mac(card)}" for card in _CARDS]


def _qemu(bench: Bench) -> Argv:
    ends = {
        VHOST: f"tap,ifname={_tap('qemu', VHOST)},script=no,downscript=no,vhost=on",
        TAP: f"tap,ifname={_tap('qemu', TAP)},script=no,downscript=no,vhost=off",
        USER: "user",
    }
    words = []
    for card in _CARDS:
        words += ["-netdev", f"{ends[card]},id={card}"]
        words += ["-device", f"virtio-net-pci,netdev={card},mac={_mac(card)},romfile="]
    return bench.qemu_linux(QUIET[SERIAL], *QEMU_CONSOLES[SERIAL], *words, full=True)


def configure(guest: Guest, program: str, net_number: int) -> dict[str, str]:
    """Give the cards addresses; returns the host's address behind each."""
    guest.run("modprobe virtio_net")
    for number, card in enumerate(_CARDS):
        guest.run(f"grep -q {_mac(card)} /sys/class/net/eth{number}/address && ip link set eth{number} up")
    hosts = {}
    for number, card in enumerate((VHOST, TAP)):
        subnet = f"10.77.{net_number + number}"
        tap = _tap(program, card)
        subprocess.run(["ip", "addr", "add", f"{subnet}.1/24", "dev", tap], check=True)
        subprocess.run(["ip", "link", "set", tap, "up"], check=True)
        guest.run(f"ip addr add {subnet}.2/24 dev eth{number}")
        hosts[card] = f"{subnet}.1"
    # passt and slirp both lead from their gateway to the host's own loopback.
    guest.run(f"udhcpc -i eth{_CARDS.index(USER)} -n -q -t 10")
    hosts[USER] = guest.run("ip route | awk '/^default/ { print $3 }'").split()[0]
    return hosts


def transfer(guest: Guest, load: str, host: str, amount: str) -> float:
    """The figure that netload in the guest finds with the one on the host."""
    return rate(guest.run(f"netload {load} {host} {_PORT} {amount}"))


def rate(said: str) -> float:
    """The figure in what netload printed: bytes, or requests, a second."""
    found = _RESULT.search(said)
    if not found:
        sys.exit(f"netload gave no figure: {said}")
    return float(found[1]) * (_MIB_SIZE if found[2] else 1)
