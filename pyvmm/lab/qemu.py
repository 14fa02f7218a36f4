# SPDX-License-Identifier: Apache-2.0
"""The emulated RISC-V machine: its command line, its monitor, and saving and restoring its state.

QEMU runs as a daemon that needs nobody: it starts by itself also when restored (the state is saved running),
the host inside powers off when it is not used, and a panic ends it. So whoever started it may be killed at
any moment.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from pyvmm.errors import ConfigError, HostError
from pyvmm.lab import store, tools
from pyvmm.lab.agent import READY
from pyvmm.lab.image import Image

MEMORY = 4 << 30
"""Bytes of memory that a host has, of which it takes what it uses."""
_COLD_BOOT_LIMIT = 180.0  # seconds; a cold boot takes about 7 on a two-core machine of 2023
_POLL = 0.05
_MONITOR_LIMIT = 60.0  # seconds for one answer of the monitor
# Beyond what rv64 has by itself: what KVM can hand on to guests (and so what --isa can be tried with), except
# vectors, which are slow to emulate. zkr is the seed CSR.
_COMMON_CPU = (
    "rv64,h=true,sstc=true,zkr=true,svinval=true,svnapot=true,svpbmt=true,zicond=true,zacas=true,zabha=true,"
    "smstateen=true,sscofpmf=true"
)
_TWO_CPUS = ("-accel", "tcg,thread=multi", "-smp", "2")
# One instruction is 2 ns. Sleep takes the time it takes: were it skipped (sleep=off), the idle time after
# which a host powers off would be over before anybody could connect.
_COUNTING = ("-accel", "tcg,thread=single", "-smp", "1", "-icount", "shift=1,sleep=on")


class Flavour:
    """One kind of host: the machine QEMU makes, and the kernel that suits it."""

    def __init__(
        self, name: str, machine: str, cpu: str, series: str, execution: tuple[str, ...] = _TWO_CPUS
    ) -> None:
        self.name = name
        self.machine = machine
        self.cpu = cpu
        self.series = series
        self.execution = execution


_AIA_MACHINE = "virt,aia=aplic-imsic,aia-guests=3"
_AIA_CPU = f"{_COMMON_CPU},smaia=true,ssaia=true"
FLAVOURS = {
    # KVM has an irqchip here: APLIC and IMSIC with three guest interrupt files.
    "aia": Flavour("aia", _AIA_MACHINE, _AIA_CPU, "7"),
    # KVM has none here, so the user-space PLIC must serve.
    "plic": Flavour("plic", "virt", _COMMON_CPU, "7"),
    # As aia, for measuring: its clock counts instructions, so figures repeat however busy the machine is.
    "counting": Flavour("counting", _AIA_MACHINE, _AIA_CPU, "7", _COUNTING),
}


def flavour(name: str) -> Flavour:
    """Raises ConfigError for a name that is no flavour."""
    if name not in FLAVOURS:
        raise ConfigError(f"There is no lab flavour {name!r}; there are {' and '.join(FLAVOURS)}.")
    return FLAVOURS[name]


class Qemu:
    """The QEMU process of one flavour, found again by its files in the runtime directory.

    ``pid`` is 0 while none runs. Not thread-safe: the caller holds the flavour's lock.
    """

    def __init__(self, kind: Flavour, runtime: Path) -> None:
        self.kind = kind
        self.console = runtime / f"{kind.name}.console"
        self._monitor = runtime / f"{kind.name}.qmp"
        self._pidfile = runtime / f"{kind.name}.pid"

    def start(self, image: Image, idle: int) -> None:
        """Boot from power-on and wait until ssh is served. Raises HostError with the console's last lines."""
        self._launch(self._command(image, idle))
        self._wait_ready()

    def restore(self, image: Image, idle: int) -> bool:
        """Continue from the saved state; False when there is none."""
        saved = self._snapshot(image, idle)
        if not saved.exists():
            return False
        self._launch(
            [*self._command(image, idle), "-global", "migration.mapped-ram=on", "-incoming", f"file:{saved}"]
        )
        return True

    def save(self, image: Image, idle: int) -> None:
        """Save the state for later restores, then go on. No 9p share may be mounted yet."""
        saved = self._snapshot(image, idle)
        part = saved.with_name(saved.name + ".part")
        with Monitor(self._monitor) as monitor:
            capability = {"capability": "mapped-ram", "state": True}
            monitor.execute("migrate-set-capabilities", capabilities=[capability])
            monitor.execute("migrate", uri=f"file:{part}")
            while (status := monitor.execute("query-migrate")["status"]) not in ("completed", "failed"):
                time.sleep(_POLL)
            monitor.execute("cont")
        if status == "completed":
            part.replace(saved)
        else:
            part.unlink(missing_ok=True)

    def forget(self, image: Image, idle: int) -> None:
        """Delete the saved state."""
        self._snapshot(image, idle).unlink(missing_ok=True)

    def ssh_port(self) -> int:
        """The loopback port that leads to the host's sshd."""
        with Monitor(self._monitor) as monitor:
            text = monitor.execute("human-monitor-command", **{"command-line": "info usernet"})
        found = re.search(r"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", text)
        if not found:
            raise HostError("QEMU does not say on which port the lab host can be reached.")
        return int(found[1])

    def identity(self) -> tuple[int, int]:
        """Process id and start time (clock ticks since boot): together they never name another process."""
        try:
            pid = int(self._pidfile.read_text())
        except (OSError, ValueError):
            return (0, 0)
        return (pid, start_time(pid))

    def stop(self) -> None:
        """End it at once; the host's root is memory, so there is nothing to lose."""
        pid, started = self.identity()
        if pid and started:
            try:
                with Monitor(self._monitor) as monitor:
                    monitor.execute("quit")
            except (OSError, HostError):
                pass
            _end(pid, started)
        for path in (self._pidfile, self._monitor):
            path.unlink(missing_ok=True)

    def _launch(self, command: list[str]) -> None:
        self.console.unlink(missing_ok=True)
        environment = {**os.environ, **tools.qemu_environment()}
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )
        if done.returncode:
            raise HostError(
                f"QEMU does not start: {done.stderr.strip().splitlines()[-1:] or 'it gives no reason'}."
            )

    def _command(self, image: Image, idle: int) -> list[str]:
        return [
            *self._machine(image, idle),
            "-serial", f"file:{self.console}",
            "-qmp", f"unix:{self._monitor},server=on,wait=off",
            "-daemonize", "-pidfile", str(self._pidfile),
        ]  # fmt: skip

    def _machine(self, image: Image, idle: int) -> list[str]:
        root = tools.group("host")
        return [
            *tools.command("qemu-system-riscv64"),
            "-L", str(root / "usr/share/qemu"),
            "-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-no-reboot",
            "-machine", self.kind.machine, "-cpu", self.kind.cpu,
            *self.kind.execution, "-m", f"{MEMORY >> 30}G",
            "-bios", str(root / "usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic.bin"),
            "-kernel", str(image.kernel.image), "-initrd", str(image.initrd),
            "-append", f"console=ttyS0 quiet panic=-1 lab.idle={idle}",
            "-netdev", "user,id=net,hostfwd=tcp:127.0.0.1:0-:22",
            "-device", "virtio-net-pci,netdev=net,romfile=",
            "-device", "virtio-rng-pci",
            "-virtfs", "local,path=/,mount_tag=machine,security_model=none,multidevs=remap",
        ]  # fmt: skip

    def _snapshot(self, image: Image, idle: int) -> Path:
        return image.directory / f"state-{self.kind.name}-{store.recipe_key(self._machine(image, idle))}"

    def _wait_ready(self) -> None:
        limit = time.monotonic() + _COLD_BOOT_LIMIT
        while READY.strip() not in self.console_text():
            if not self.identity()[1]:
                raise HostError(
                    f"The lab host went away in its boot; the end of its console: {self._console_end()}"
                )
            if time.monotonic() > limit:
                self.stop()
                raise HostError(
                    f"The lab host does not come up; the end of its console: {self._console_end()}"
                )
            time.sleep(_POLL)

    def console_text(self) -> str:
        """What the host has printed on its serial console since it was started."""
        try:
            return self.console.read_text(errors="replace")
        except OSError:
            return ""

    def _console_end(self) -> str:
        return " | ".join(self.console_text().splitlines()[-3:]) or "(empty)"


class Monitor:
    """A connection to QEMU's machine protocol (QMP)."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_MONITOR_LIMIT)
        self._stream = self._socket.makefile("rw")
        try:
            self._socket.connect(str(path))
            self._stream.readline()
            self.execute("qmp_capabilities")
        except OSError as e:
            self.close()
            raise HostError(f"QEMU's monitor {path} does not answer: {e.strerror}.", e.errno or 0) from e
        except HostError:
            self.close()
            raise

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; QEMU goes on."""
        self._socket.close()
        try:
            self._stream.close()
        except OSError:
            pass  # what was not sent yet is of no use to anybody

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one command and return its result; raises HostError with QEMU's words when it refuses."""
        self._stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._stream.flush()
        while line := self._stream.readline():
            reply = json.loads(line)
            if "error" in reply:
                raise HostError(f"QEMU refuses {command}: {reply['error']['desc']}.")
            if "return" in reply:
                return reply["return"]
        raise HostError(f"QEMU ended during {command}.")


def start_time(pid: int) -> int:
    """When a process was started, in clock ticks since boot; 0 when there is none or it is a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in ("Z", "X") else int(fields[19])


def _end(pid: int, started: int) -> None:
    limit = time.monotonic() + 5
    while start_time(pid) == started:
        if time.monotonic() > limit:
            os.kill(pid, signal.SIGKILL)
            limit += 5
        time.sleep(_POLL)
