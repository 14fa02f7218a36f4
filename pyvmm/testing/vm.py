# SPDX-License-Identifier: Apache-2.0
"""A guest under test: a ``pyvmm run`` of its own, driven through its console and its sockets."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm import outcome
from pyvmm.config import parse_size
from pyvmm.control.client import Control, ControlError, ControlGone
from pyvmm.errors import ConfigError, KvmUnavailable
from pyvmm.testing import artifacts
from pyvmm.testing.config import GuestConfig
from pyvmm.testing.errors import GuestError, GuestExited, GuestHang, GuestPanic, GuestTimeout, visible
from pyvmm.testing.leases import Lease, Leases
from pyvmm.testing.log import ConsoleLog
from pyvmm.testing.place import Place

if TYPE_CHECKING:
    from pyvmm.testing.console import Console
    from pyvmm.testing.guest import GuestChannel
    from pyvmm.testing.trace import TraceReader

_POLL = 0.05
_KILL_PATIENCE = 10.0
_LOST = "lost"
_REASONS = {
    outcome.EXIT_OK: outcome.POWEROFF,
    outcome.EXIT_TIMEOUT: outcome.TIMEOUT,
    outcome.EXIT_USAGE: outcome.FAILED,
    outcome.EXIT_NO_KVM: "no-kvm",
    outcome.EXIT_HUNG: outcome.HUNG,
    outcome.EXIT_PANIC: outcome.PANIC,
}


class End:
    """How a guest ended: ``reason`` as in docs/reference/exit-codes.md, ``exit_code`` and ``message``."""

    def __init__(self, reason: str, exit_code: int, message: str) -> None:
        self.reason = reason
        self.exit_code = exit_code
        self.message = message

    def __repr__(self) -> str:
        return f"<{self.reason}: {self.message}>"


class Frame:
    """What all guests of a test have in common. Times are in seconds, before scaling."""

    def __init__(
        self,
        *,
        place: Place,
        leases: Leases,
        sockets: Path,
        scale: float,
        timeout: float,
        allow_panic: bool,
        trace: str,
        live: Callable[[bytes], None] | None,
        show_tail: bool = True,
    ) -> None:
        self.place = place
        self.leases = leases
        self.sockets = sockets
        self.scale = scale
        self.timeout = timeout
        self.allow_panic = allow_panic
        self.trace = trace
        self.live = live
        self.show_tail = show_tail


class Vm:
    """One guest. Made, not started; ``close`` ends it whatever state it is in.

    ``config`` may be looked at; ``folder`` is where its artifacts are; ``boot_seconds`` is how long it took
    from its start to the agent's first word, once that is known.
    """

    def __init__(self, name: str, config: GuestConfig, folder: Path, frame: Frame) -> None:
        self.name = name
        self.config = config
        self.folder = folder
        self.frame = frame
        self.end: End | None = None
        self.boot_seconds: float | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.log = ConsoleLog(folder / artifacts.CONSOLE, frame.live)
        self._console: Console | None = None
        self._guest: GuestChannel | None = None
        self._trace: TraceReader | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._pump: threading.Thread | None = None
        self._events: threading.Thread | None = None
        self._ended_event: dict[str, Any] = {}
        self._leases: list[Lease] = []
        self._started_at = 0.0
        self._has_agent = False
        self._closed = False

    def __repr__(self) -> str:
        return f"<Vm {self.name}: {self.state}>"

    def __enter__(self) -> Vm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def state(self) -> str:
        """``made``, ``running``, ``panicked`` or ``ended``."""
        if self.end is not None:
            return "ended"
        if self._process is None:
            return "made"
        return "panicked" if self.log.panicked else "running"

    @property
    def lost(self) -> bool:
        """Whether nothing can be awaited of it any more: it ended, or panicked when it was not to."""
        return self.end is not None or (self.panic_ends() and self.log.panicked)

    @property
    def console(self) -> Console:
        """Its console, with pexpect's API."""
        if self._console is None:
            from pyvmm.testing.console import Console

            self._console = Console(self, self.frame.timeout, self.frame.scale)
        return self._console

    @property
    def guest(self) -> GuestChannel:
        """Commands and files in it, over a channel of their own."""
        if self._guest is None:
            from pyvmm.testing.guest import GuestChannel

            self._guest = GuestChannel(self)
        return self._guest

    @property
    def trace(self) -> TraceReader:
        """What it did so far; only for a guest that was started with a trace."""
        if self._trace is None:
            from pyvmm.testing.trace import TraceReader

            self._trace = TraceReader(self.folder / artifacts.TRACE)
        return self._trace

    def start(self) -> None:
        """Start it, and wait until pyvmm can be asked about it; the guest itself has only begun to boot.

        Raises ConfigError with pyvmm's own sentence when it refuses, KvmUnavailable, GuestTimeout.
        """
        if self._process is not None:
            raise ConfigError(f"the guest {self.name} was started already")
        config = self._with_leases()
        words = self._words(config)
        artifacts.write_config(self.folder, config, words, self.frame.place.name)
        size = parse_size(str(config.mem or "256M"), "mem")
        self._leases.append(self.frame.leases.memory(size, 10 * self.limit()))
        self.frame.place.sockets(self.name, self.frame.sockets)
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._started_at = time.monotonic()
        self.log.begin()
        with theirs, (self.folder / artifacts.SAID).open("wb") as said:
            self._process = self.frame.place.popen(words, stdin=theirs, stdout=theirs, stderr=said)
        self._pump = threading.Thread(target=self._read, args=(ours, self._process), daemon=True)
        self._pump.start()
        self._wait_for_control()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the agent in the guest answers. Raises GuestPanic, GuestExited, GuestTimeout."""
        self.guest.wait_ready(timeout)

    def is_ready(self) -> None:
        """The agent has answered."""
        if self.boot_seconds is None:
            self.boot_seconds = time.monotonic() - self._started_at

    def forget_output(self) -> None:
        """What the console has shown so far is not to be expected any more."""
        if self._console is None:
            self.log.forget_pending()
        else:
            self._console.forget()

    def wait(self, timeout: float | None = None) -> End:
        """Wait for the end of the guest. Raises GuestTimeout, and GuestPanic when it was not to panic."""
        limit = self.limit(timeout)
        if not self.log.wait_end(limit, self.panic_ends):
            raise GuestTimeout("the guest did not end", awaited="its end", waited=limit, tail=self.log.tail())
        if self.end is None or (self.panic_ends() and self.log.panicked):
            raise self.fatal("its end", time.monotonic() - self._started_at)
        return self.end

    def request(self, do: str, **params: object) -> dict[str, Any]:
        """Ask its pyvmm something (docs/reference/control-protocol.md).

        Raises ControlError when it is refused, ControlGone, GuestExited.
        """
        if self.end is not None or self._process is None:
            raise GuestExited(f"the guest is not running, so there is no {do}")
        with Control(self._path("control")) as control:
            return control.request(do, **params)  # type: ignore[arg-type]  # patience is among them

    def pause(self) -> None:
        """Stop its harts and devices; its time stands still."""
        self.request("pause")

    def resume(self) -> None:
        """Let it go on."""
        self.request("resume")

    def reset(self) -> None:
        """Restart it at once."""
        self.request("reset")

    def power_button(self) -> None:
        """Press its power key."""
        self.request("power_button")

    def stop(self, grace: float = 10.0) -> End:
        """Ask it to power off, and end it after ``grace`` seconds (scaled)."""
        seconds = grace * self.frame.scale
        self.request("stop", grace=seconds, patience=seconds + self.limit())
        return self.wait()

    def inspect(self) -> dict[str, Any]:
        """Its memory slots, bus, interrupts, queues and counters."""
        return self.request("inspect")

    def registers(self, cpu: int = 0) -> dict[str, int]:
        """The registers of one of its harts, by name."""
        found = self.request("registers", cpu=cpu)["registers"]
        return {name: int(value, 16) for name, value in found.items()}

    def limit(self, timeout: float | None = None) -> float:
        """Seconds to wait: ``timeout``, by default the test's, times the scale."""
        return (self.frame.timeout if timeout is None else timeout) * self.frame.scale

    def write(self, data: bytes) -> None:
        """Type ``data`` on its console. Raises GuestExited, GuestTimeout."""
        if self._socket is None:
            raise GuestExited("the guest was not started, so nothing can be typed")
        limit = time.monotonic() + self.limit()
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        while data:
            if not poll.poll(max(0.0, limit - time.monotonic()) * 1000):
                raise GuestTimeout(f"the guest did not read what was typed: {len(data)} bytes are left")
            try:
                data = data[self._socket.send(data, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                continue
            except OSError:
                raise self.fatal("what was typed", 0.0) from None

    def panic_ends(self) -> bool:
        """Whether a panic is the end of all waiting: it is, unless the test allows it."""
        return not self.frame.allow_panic

    def fatal(self, awaited: str, waited: float | None) -> GuestError:
        """Why nothing can be awaited of the guest any more."""
        about = {"awaited": awaited, "waited": waited, "tail": self.log.tail()}
        if self.log.panicked:
            return GuestPanic(f"the guest panicked: {self.log.panic.message}", **about)  # type: ignore[arg-type]
        end = self.end or End(_LOST, -1, "it is not running")
        kind = GuestHang if end.reason == outcome.HUNG else GuestExited
        return kind(f"the guest ended: {end.message}", **about)  # type: ignore[arg-type]

    def agent_path(self) -> str:
        """The path of its agent's socket. Raises GuestExited, and ConfigError when it has none."""
        if self._process is None:
            raise GuestExited("the guest was not started: call vm.start(), or use the fixture vm_booted")
        if not self._has_agent:
            raise ConfigError("this guest has no agent, so it takes neither commands nor files")
        return self._path("agent")

    def close(self) -> None:
        """End it at once, and give everything back. Idempotent; never raises for what the guest did."""
        if self._closed:
            return
        self._closed = True
        try:
            self._end_process()
        finally:
            if self._guest is not None:
                self._guest.close()
            if self._pump is None:
                self.log.end()
            if self._socket is not None:
                self._socket.close()
            self.frame.place.release(self.name, self.frame.sockets)
            for lease in self._leases:
                lease.release()

    def _end_process(self) -> None:
        process, pump = self._process, self._pump
        if process is None or pump is None:
            return
        if process.poll() is None:
            try:
                self.request("kill")
            except (ControlError, ControlGone, GuestExited):
                process.terminate()
        for last_word in (process.terminate, process.kill):
            try:
                process.wait(_KILL_PATIENCE)
                break
            except subprocess.TimeoutExpired:
                last_word()
        process.wait()
        pump.join()

    def _words(self, config: GuestConfig) -> list[str]:
        words = ["run", "--no-config", "--host=local", f"--name={self.name}", *config.words()]
        possible = config.firmware is None and "rdinit=" not in str(config.params)
        self._has_agent = bool(config.agent) if config.agent is not None else possible
        if config.agent is None and possible:
            words.append("--agent")
        if config.on_reboot is None:
            words.append("--on-reboot=exit")
        if config.on_panic is None and not self.frame.allow_panic:
            words.append("--on-panic=wait")  # its registers can be looked at then
        words.append(f"--dump-dtb={self.folder / artifacts.DTB}")
        if self.frame.trace:
            words += [f"--trace={self.frame.trace}", f"--trace-out={self.folder / artifacts.TRACE}"]
        return words

    def _with_leases(self) -> GuestConfig:
        """The config with context ids and taps that no other test has where it says ``auto``."""
        config = self.config
        if config.vsock in ("auto", ["auto"]):
            cid, lease = self.frame.leases.cid()
            self._leases.append(lease)
            config = config.replace(vsock=[cid])
        nets = [config.nets] if isinstance(config.nets, str) else list(config.nets or ())  # type: ignore[call-overload]
        for number, net in enumerate(nets):
            if "tap=auto" in net.split(","):
                tap, lease = self.frame.leases.tap()
                self._leases.append(lease)
                nets[number] = net.replace("tap=auto", f"tap={tap}")
        return config.replace(nets=nets) if nets else config

    def _path(self, kind: str) -> str:
        return str(self.frame.sockets / self.name / f"{kind}.sock")

    def _wait_for_control(self) -> None:
        limit = time.monotonic() + self.limit(60)
        while not self.log.wait_end(_POLL, lambda: False):
            try:
                control = Control(self._path("control"))
            except (ControlError, ControlGone):
                if time.monotonic() > limit:
                    raise GuestTimeout("pyvmm did not start the guest in time", tail=self.said()) from None
                continue
            self._events = threading.Thread(target=self._record_events, args=(control,), daemon=True)
            self._events.start()
            return
        assert self.end is not None
        if self.end.exit_code == outcome.EXIT_USAGE:
            raise ConfigError(self.end.message)
        if self.end.exit_code == outcome.EXIT_NO_KVM:
            raise KvmUnavailable(self.end.message)

    def said(self) -> list[str]:
        """What its pyvmm said on stderr."""
        try:
            text = (self.folder / artifacts.SAID).read_text(errors="replace")
        except OSError:
            return []
        return visible(text).splitlines()

    def _read(self, console: socket.socket, process: subprocess.Popen[bytes]) -> None:
        """The thread that takes the guest's output, so that the guest never waits for a test."""
        gone = os.pidfd_open(process.pid)
        poll = select.poll()
        poll.register(console, select.POLLIN)
        poll.register(gone, select.POLLIN)
        try:
            # What a helper of pyvmm holds open does not count once pyvmm itself is gone.
            while any(fd == console.fileno() for fd, _ in poll.poll()) and (data := _receive(console)):
                self.log.feed(data)
                if self._guest is not None and self.panic_ends() and self.log.panicked:
                    self._guest.interrupt()
            process.wait()
            if self._events is not None:
                self._events.join(_POLL * 20)
        finally:
            os.close(gone)
            self.end = self._explain(process.returncode)
            self.log.end()
            if self._guest is not None:
                self._guest.interrupt()

    def _explain(self, code: int) -> End:
        said = [line.removeprefix("pyvmm: ") for line in self.said() if line.startswith("pyvmm: ")]
        message = said[-1] if said else f"its pyvmm ended with status {code}"
        if code < 0:
            return End(_LOST, code, f"its pyvmm was killed by {signal.Signals(-code).name}")
        reason = self._ended_event.get("reason") or _reason(code, message)
        if self.log.panic.seen and reason in (outcome.REBOOT, outcome.POWEROFF):
            reason = outcome.PANIC
        return End(reason, code, str(self._ended_event.get("message") or message))

    def _record_events(self, control: Control) -> None:
        """The thread that writes down what happens to the guest."""
        try:
            with control, artifacts.events(self.folder) as write:
                for event in control.events():
                    write(event)
                    if event.get("event") == "ended":
                        self._ended_event = event
        except (ControlError, ControlGone):
            pass  # it ended


def _reason(code: int, message: str) -> str:
    """Why a guest ended that was gone before its events could be had: by its pyvmm's last words."""
    if code == outcome.EXIT_OK and "reboot" in message:
        return outcome.REBOOT
    return _REASONS.get(code, outcome.SIGNAL)


def _receive(console: socket.socket) -> bytes:
    try:
        return console.recv(65536)
    except OSError:
        return b""
