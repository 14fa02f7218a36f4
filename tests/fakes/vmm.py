# SPDX-License-Identifier: Apache-2.0
"""A stand-in for `pyvmm`, for tests of the pytest plugin: its kernels are scripts, one command a line.

say TEXT      print a line
bytes HEX     print these bytes
shell         answer lines that are typed: `echo X`, `panic`, `off`, and `die` and `end` as here
flood         print for ever
panic         print what Linux prints
warn TEXT     print a line on stderr
trace LINE    add a line to the trace
stay          run until told to end
die N         be killed by signal N
end CODE WHY  end with this code

Set with PYVMM_TEST_CLI=fakes.vmm. FAKE_DOCTOR=no makes a host without KVM. FAKE_LOG names a file that gets a
line when a guest begins, and one when it ends by itself.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable

from fakes.vmmagent import FakeAgent

PANIC = (
    "[    1.0] Kernel panic - not syncing: sysrq triggered crash\n"
    "[    1.0] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---"
)


def main(argv: list[str]) -> int:
    """As pyvmm.cli.main."""
    if argv[0] == "doctor":
        return doctor()
    options = dict(word.lstrip("-").partition("=")[::2] for word in argv[1:])
    try:
        with open(options["kernel"]) as file:
            script = file.read().splitlines()
    except OSError:
        print(f"pyvmm: {options['kernel']} cannot be read.", file=sys.stderr)
        return 125
    return Fake(options, script).run()


def doctor() -> int:
    usable = os.environ.get("FAKE_DOCTOR") != "no"
    checks = [
        ("kvm", "ok" if usable else "fail", "/dev/kvm, API 12" if usable else "no /dev/kvm", "modprobe kvm"),
        ("cpus", "ok", "up to 8 a guest", ""),
        ("in-kernel AIA", "warn", "none", ""),
        ("isa", "ok", "sstc zbb", ""),
        ("sbi", "ok", "hsm time", ""),
    ]
    fields = ("name", "state", "found", "advice")
    print(json.dumps([dict(zip(fields, check, strict=True)) for check in checks]))
    return 0 if usable else 126


class Fake:
    """One guest."""

    def __init__(self, options: dict[str, str], script: list[str]) -> None:
        self.options = options
        self.script = script
        self.folder = os.path.join(os.environ["PYVMM_RUN_DIR"], options["name"])
        self.started = time.monotonic()
        self.late: list[str] = []
        self.streams: list[socket.socket] = []
        self.over = threading.Event()
        self.end: tuple[str, int, str] = ("poweroff", 0, "the guest powered off")

    def run(self) -> int:
        os.mkdir(self.folder, 0o700)
        self._note("begin")
        with open(self.options["dump-dtb"], "wb") as file:
            file.write(b"\xd0\x0d\xfe\xed")
        if "agent" in self.options:
            os.mkdir(f"{self.folder}/root")
            self._listen("agent", self._serve_agent)
        self._listen("control", self._converse)
        threading.Thread(target=self._play, daemon=True).start()
        self.over.wait()
        reason, code, why = self.end
        self._emit({"event": "ended", "reason": reason, "exit_code": code, "message": why})
        print(f"pyvmm: {why}", file=sys.stderr, flush=True)
        shutil.rmtree(self.folder)
        self._note("end")
        os._exit(code)

    def _note(self, what: str) -> None:
        if "FAKE_LOG" in os.environ:
            with open(os.environ["FAKE_LOG"], "a") as file:
                file.write(f"{what} {self.options['name']} {os.getpid()} {json.dumps(self.options)}\n")

    def _finish(self, reason: str, code: int, why: str) -> None:
        self.end = (reason, code, why)
        self.over.set()

    def _play(self) -> None:
        for line in self.script:
            command, _, rest = line.partition(" ")
            getattr(self, f"_{command}")(rest)
        self._finish(*self.end)

    def _say(self, text: str) -> None:
        self._bytes((text + "\r\n").encode().hex())

    def _bytes(self, text: str) -> None:
        data = bytes.fromhex(text)
        while data:
            data = data[os.write(1, data) :]

    def _panic(self, _: str) -> None:
        self._say(PANIC.replace("\n", "\r\n"))
        self._emit({"event": "panic"})
        if self.options.get("on-panic") == "wait":
            self._stay("")
        self._finish("panic", 255, "the guest panicked")
        self._stay("")

    def _flood(self, _: str) -> None:
        while True:
            os.write(1, b"\x1b[31m\xff\xfe spam \x07\r\n" * 400)

    def _trace(self, line: str) -> None:
        with open(self.options["trace-out"], "a") as file:
            file.write(line + "\n")

    def _late(self, line: str) -> None:
        """What happened, and is written out only when the trace is marked."""
        self.late.append(line)

    def _mark(self, text: str) -> None:
        while self.late:
            self._trace(self.late.pop(0))
        self._trace(f"[    9.000000] mark   {text}")

    def _warn(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def _stay(self, _: str) -> None:
        threading.Event().wait()

    def _die(self, number: str) -> None:
        os.kill(os.getpid(), int(number))

    def _end(self, rest: str) -> None:
        code, _, why = rest.partition(" ")
        reasons = {0: "poweroff", 124: "timeout", 254: "hung", 255: "panic"}
        self._finish(reasons.get(int(code), "failed"), int(code), why)
        self._stay("")

    def _shell(self, _: str) -> None:
        typed = b""
        self._bytes(b"# ".hex())
        while data := os.read(0, 4096):
            typed += data
            while b"\n" in typed:
                line, _, typed = typed.partition(b"\n")
                self._answer(line.decode("utf-8", "replace"))
                self._bytes(b"# ".hex())

    def _answer(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "echo":
            self._say(rest)
        elif word == "panic":
            self._panic("")
        elif word == "off":
            self._end("0 the guest powered off")
        elif word in ("end", "die"):
            getattr(self, f"_{word}")(rest)

    def _listen(self, kind: str, serve: Callable[[socket.socket], None]) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{self.folder}/{kind}.sock")
        listener.listen()

        def accept() -> None:
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()

    def _serve_agent(self, connection: socket.socket) -> None:
        def power_off() -> None:
            self._finish("poweroff", 0, "the guest powered off")

        FakeAgent(connection, f"{self.folder}/root", power_off).serve()

    def _converse(self, connection: socket.socket) -> None:
        send = lambda message: connection.sendall(json.dumps(message).encode() + b"\n")  # noqa: E731
        send({"pyvmm": "0", "protocol": 1, "name": self.options["name"], "pid": os.getpid()})
        for line in connection.makefile("rb"):
            request = json.loads(line)
            result: dict[str, object] = {}
            if request["do"] == "events":
                self.streams.append(connection)
            elif request["do"] == "registers":
                result = {"cpu": request["cpu"], "registers": {"pc": "0xffffffff80001234", "ra": "0x5"}}
            elif request["do"] == "sysrq":
                self._say(f"sysrq: {request['key']}")
            elif request["do"] == "mark":
                self._mark(request["text"])
            elif request["do"] == "kill":
                self._finish("killed", 0, "ended by pyvmm kill")
            elif request["do"] == "stop":
                self._finish("poweroff", 0, "the guest powered off")
            send({"id": request["id"], "ok": True, "result": result})

    def _emit(self, event: dict[str, object]) -> None:
        for stream in self.streams:
            try:
                stream.sendall(
                    json.dumps({"time": time.monotonic() - self.started, **event}).encode() + b"\n"
                )
            except OSError:
                pass
