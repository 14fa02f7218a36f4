# SPDX-License-Identifier: Apache-2.0
"""A guest under test: a ``pyvmm run`` of its own, driven through its console and its sockets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm import outcome
from pyvmm.attempts import attempt_all
from pyvmm.config import parse_size
from pyvmm.control.client import ControlError, ControlGone
from pyvmm.errors import ConfigError, KvmUnavailable
from pyvmm.testing import artifacts
from pyvmm.testing.config import GuestConfig
from pyvmm.testing.errors import GuestError, GuestExited, GuestHang, GuestPanic, GuestTimeout
from pyvmm.testing.leases import Lease, Leases
from pyvmm.testing.log import ConsoleLog
from pyvmm.testing.place import Place
from pyvmm.testing.process import LOST, End, GuestProcess

if TYPE_CHECKING:
    from pyvmm.testing.console import Console
    from pyvmm.testing.guest import GuestChannel
    from pyvmm.testing.trace import TraceReader


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
        self.boot_seconds: float | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.log = ConsoleLog(folder / artifacts.CONSOLE, frame.live, shown=frame.show_tail)
        self._console: Console | None = None
        self._guest: GuestChannel | None = None
        self._trace: TraceReader | None = None
        self._process: GuestProcess | None = None
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
    def end(self) -> End | None:
        """How it ended; None until then."""
        return self._process.end if self._process is not None else None

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
        """What it did so far. Raises ConfigError for a guest that is not traced."""
        if self._trace is None:
            from pyvmm.testing.trace import TraceReader

            if not self.frame.trace:
                raise ConfigError("this guest is not traced: use the fixture trace, or --vmm-trace")
            self._trace = TraceReader(self)
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
        words = self.frame.place.prepare(self.name, self.frame.sockets, words)
        self._started_at = time.monotonic()
        sockets = self.frame.sockets / self.name
        self._process = GuestProcess(
            self.frame.place, words, sockets, self.folder, self.log, self._something_happened
        )
        self._process.wait_for_control(self.limit(60))
        if self.end is not None and self.end.exit_code == outcome.EXIT_USAGE:
            raise ConfigError(self.end.message)
        if self.end is not None and self.end.exit_code == outcome.EXIT_NO_KVM:
            raise KvmUnavailable(self.end.message)

    def _something_happened(self) -> None:
        """On the thread that takes its output: whoever waits for its agent need not, once it is lost."""
        if self._guest is not None and self.lost:
            self._guest.interrupt()

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
        return self._process.request(do, **params)

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

    def mark_trace(self, text: str) -> bool:
        """Write a line into its trace, after all that it did so far.

        False when it does not run, and no more will be written. Raises GuestTimeout.
        """
        if self._process is None:
            return False
        try:
            self.request("mark", text=text)
        except (ControlError, ControlGone, GuestExited):  # it has ended, or is about to
            limit = self.limit()
            if not self.log.wait_end(limit, lambda: False):
                raise GuestTimeout(
                    "its pyvmm takes no requests, and goes on", awaited="its trace", waited=limit
                ) from None
            return False
        return True

    def limit(self, timeout: float | None = None) -> float:
        """Seconds to wait: ``timeout``, by default the test's, times the scale."""
        return (self.frame.timeout if timeout is None else timeout) * self.frame.scale

    def write(self, data: bytes) -> None:
        """Type ``data`` on its console. Raises GuestExited, GuestTimeout."""
        if self._process is None:
            raise GuestExited("the guest was not started, so nothing can be typed")
        if not self._process.write(data, self.limit()):
            raise self.fatal("what was typed", None)

    def panic_ends(self) -> bool:
        """Whether a panic is the end of all waiting: it is, unless the test allows it."""
        return not self.frame.allow_panic

    def fatal(self, awaited: str, waited: float | None) -> GuestError:
        """Why nothing can be awaited of the guest any more."""
        about = {"awaited": awaited, "waited": waited, "tail": self.log.tail()}
        if self.log.panicked:
            return GuestPanic(f"the guest panicked: {self.log.panic.message}", **about)  # type: ignore[arg-type]
        end = self.end or End(LOST, -1, "it is not running")
        kind = GuestHang if end.reason == outcome.HUNG else GuestExited
        return kind(f"the guest ended: {end.message}", **about)  # type: ignore[arg-type]

    def said(self) -> list[str]:
        """What its pyvmm said on stderr."""
        return self._process.said() if self._process is not None else []

    def agent_path(self) -> str:
        """The path of its agent's socket. Raises GuestExited, and ConfigError when it has none."""
        if self._process is None:
            raise GuestExited("the guest was not started: call vm.start(), or use the fixture vm_booted")
        if not self._has_agent:
            raise ConfigError("this guest has no agent, so it takes neither commands nor files")
        return self._process.path("agent")

    def close(self) -> None:
        """End it at once, and give everything back. Idempotent; never raises for what the guest did."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._process is not None:
                self._process.close()
        finally:
            attempt_all(self._give_back())

    def _give_back(self) -> Iterator[Callable[[], None]]:
        if self._guest is not None:
            yield self._guest.close
        yield self.log.end
        yield lambda: self.frame.place.release(self.name, self.frame.sockets)
        for lease in self._leases:
            yield lease.release

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
