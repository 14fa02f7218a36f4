# SPDX-License-Identifier: Apache-2.0
"""A machine without a guest, for those who control machines: it does what it is told, and says so."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from typing import Any

from fakes.threads import PATIENCE

from pyvmm.config import MachineConfig
from pyvmm.console.output import ConsoleWriter
from pyvmm.errors import MachineError
from pyvmm.outcome import POWEROFF, Outcome


class FakeMachine:
    """``calls`` is what was asked of it; ``gate``, when cleared, holds up whoever pauses it.

    ``obeys`` says what makes its guest power off: "power-key", "sysrq" or nothing.
    """

    def __init__(self, obeys: str = "power-key") -> None:
        self.config = MachineConfig(kernel="Image", mem="64M", cpus=2, params="quiet")
        self.obeys = obeys
        self.state = "running"
        self.calls: list[Any] = []
        self.typed: list[bytes] = []
        self.reads_input = True
        self.untaken: list[Any] = []
        self.gate = threading.Event()
        self.gate.set()
        self.pausing = threading.Event()
        self.ended: Outcome | None = None
        self._subscribers: list[Any] = []
        self._balloon = 0
        self.uptime = 12.75
        self.started_at: float | None = 1_700_000_000.25
        self.writer = ConsoleWriter(lambda line: None, self._failed)

    def _failed(self, error: BaseException) -> None:
        raise error

    def close(self) -> None:
        self.gate.set()
        self.writer.close()

    @property
    def paused(self) -> bool:
        return self.state == "paused"

    def subscribe(self, callback):
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback) if callback in self._subscribers else None

    def happen(self, event: str, **facts: object) -> None:
        for callback in list(self._subscribers):
            callback({"event": event, "time": self.uptime, **facts})

    def end(self, end: Outcome) -> None:
        if self.ended is None:
            self.ended = end
            self.state = "ended"
            self.happen("ended", reason=end.reason, exit_code=end.exit_code, message=end.message)

    def wait(self) -> Outcome:
        assert self.ended is not None
        return self.ended

    def _poweroff(self, how: str) -> None:
        if self.obeys == how:
            self.end(Outcome(POWEROFF, "the guest powered off"))

    def pause(self) -> None:
        self.pausing.set()
        assert self.gate.wait(PATIENCE)
        self.calls.append("pause")
        self.state = "paused"
        self.happen("paused")

    def resume(self) -> None:
        self.calls.append("resume")
        self.state = "running"
        self.happen("resumed")

    def reset(self) -> None:
        self.calls.append("reset")

    def power_button(self) -> None:
        self.calls.append("power_button")
        if self.obeys == "no-power-key":
            raise MachineError("the guest has no power key")
        self._poweroff("power-key")

    def sysrq(self, key: str, taken=lambda: None) -> None:
        if self.config.console == "none":
            raise MachineError("the guest has no console")
        self.calls.append(("sysrq", key))
        self._type(taken)
        if key == "o":
            self._poweroff("sysrq")

    def inspect(self) -> dict[str, Any]:
        return {"irqchip": "aia", "slots": [{"base": 0x8000_0000, "size": 0x400_0000}], "exits": {"mmio": 7}}

    def balloon(self) -> dict[str, Any]:
        return {"wanted": self._balloon, "actual": self._balloon, "statistics": {}}

    def set_balloon(self, size: int) -> None:
        self._balloon = size

    def registers(self, cpu: int) -> dict[str, int]:
        if cpu >= 2:
            raise MachineError(f"There is no CPU {cpu}: this guest has 2.")
        return {"pc": 0xFFFF_FFFF_8000_0000 + cpu, "ra": 1}

    def read_memory(self, address: int, length: int) -> bytes:
        if address < 0x8000_0000:
            raise MachineError(f"There is no memory at 0x{address:x}.")
        return bytes((address + number) & 0xFF for number in range(length))

    def mark_trace(self, text: str) -> None:
        self.calls.append(("mark", text))

    def resize(self, columns: int, rows: int) -> None:
        self.calls.append(("resize", columns, rows))

    def send_input(self, data: bytes, taken=lambda: None) -> None:
        self.typed.append(data)
        self._type(taken)

    def _type(self, taken) -> None:
        if self.reads_input:
            taken()
        else:
            self.untaken.append(taken)

    def observe_console(self, callback):
        return self.writer.observe(callback)

    def prints(self, data: bytes) -> None:
        self.writer.write(data)


class Client:
    """Another program at a socket: bytes out, bytes and lines in. It fails when it waits for nothing."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.settimeout(PATIENCE)
        self._received = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> Any:
        while b"\n" not in self._received:
            data = self.socket.recv(1 << 16)
            assert data, "the server has closed the connection"
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def ask(self, do: str, **params: object) -> Any:
        self.send(json.dumps({"id": 7, "do": do, **params}).encode() + b"\n")
        return self.line()

    def read_until(self, text: bytes) -> bytes:
        while text not in self._received:
            data = self.socket.recv(1 << 16)
            assert data, f"the end came before {text!r}: {self._received[-200:]!r}"
            self._received += data
        got, _, self._received = self._received.partition(text)
        return got

    def rest(self) -> bytes:
        """All up to the end of the connection."""
        try:
            while data := self.socket.recv(1 << 16):
                self._received += data
        except ConnectionResetError:
            pass
        return self._received

    def close(self) -> None:
        self.socket.close()


def modes(folder: str) -> dict[str, int]:
    """The permissions of a folder and all in it."""
    found = {".": os.stat(folder).st_mode & 0o777}
    for name in os.listdir(folder):
        found[name] = os.stat(os.path.join(folder, name)).st_mode & 0o777
    return found


def eventually(happened) -> None:
    """Wait for ``happened()``, which another thread brings about without saying so."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)
