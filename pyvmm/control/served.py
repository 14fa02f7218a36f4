# SPDX-License-Identifier: Apache-2.0
"""A running machine as those who control it see it."""

from __future__ import annotations

import os
import threading

from pyvmm import __version__
from pyvmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.machine import Machine

    Event = dict[str, object]

_MOST_UNREAD = 1 << 20
_PIECE_COST = 512  # bytes that a piece of input takes beside its own


class Served:
    """The machine, its name, and what is known of its end. Every method may be called from any thread.

    ``on_event`` gets the machine's events, on any thread, and must not wait.
    """

    def __init__(self, machine: Machine, name: str, on_event: Callable[[Event], None]) -> None:
        self.machine = machine
        self.name = name
        self._over = threading.Event()
        self._on_event = on_event
        self._end: Event = {}
        self._unread = 0
        self._unread_lock = threading.Lock()
        self._unsubscribe = machine.subscribe(self._happened)
        if machine.state == "ended":  # before anybody could hear of it
            end = machine.wait()
            self._end = {"reason": end.reason, "exit_code": end.exit_code, "message": end.message}
            self._over.set()

    def close(self) -> None:
        """Hear of no more events; nobody waits for the end any more."""
        self._unsubscribe()
        self._over.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the guest's end; whether it came within ``seconds``.

        Raises ConfigError when the guest goes on, and is no longer served.
        """
        over = self._over.wait(seconds)
        if over and not self._end:
            raise ConfigError("This guest can no longer be controlled here.")
        return over

    def _happened(self, event: Event) -> None:
        if event["event"] == "ended":
            self._end = {name: event.get(name) for name in ("reason", "exit_code", "message")}
            self._over.set()
        self._on_event(event)

    def end(self) -> Event:
        """How the guest ended: ``reason``, ``exit_code``, ``message``; nothing while it runs."""
        return self._end

    def greeting(self, protocol: int) -> Event:
        """What every client is told first."""
        return {"pyvmm": __version__, "protocol": protocol, "name": self.name, "pid": os.getpid()}

    def status(self) -> Event:
        """The machine in a few facts; ``mem`` is in bytes, ``uptime`` in seconds, ``started`` a Unix time."""
        config = self.machine.config
        started = self.machine.started_at
        return {
            "name": self.name,
            "pid": os.getpid(),
            "state": self.machine.state,
            "uptime": round(self.machine.uptime, 3),
            "started": None if started is None else round(started, 3),
            "mem": config.mem,
            "cpus": config.cpus,
            "program": config.kernel or config.firmware,
        }

    def type(self, data: bytes) -> None:
        """Type ``data`` into the guest's console. Raises ConfigError while it does not read."""
        cost = self._count(len(data))
        self.machine.send_input(data, lambda: self._taken(cost))

    def sysrq(self, key: str) -> None:
        """Have the guest's kernel obey a SysRq key. Raises ConfigError while it does not read."""
        cost = self._count(len(key))
        try:
            self.machine.sysrq(key, lambda: self._taken(cost))
        except BaseException:
            self._taken(cost)
            raise

    def _count(self, size: int) -> int:
        """What one more piece of input costs, once there is room for it."""
        cost = size + _PIECE_COST
        with self._unread_lock:
            if self._unread + cost > _MOST_UNREAD:
                raise ConfigError("The guest has not yet read what was typed before.")
            self._unread += cost
        return cost

    def _taken(self, cost: int) -> None:
        with self._unread_lock:
            self._unread -= cost

    def console_log(self) -> bytes:
        """The console output that was kept."""
        kept = bytearray()
        self.machine.observe_console(kept.extend)()
        return bytes(kept)
