# SPDX-License-Identifier: Apache-2.0
"""Commands and files in a guest under test, over the agent's own port: never mixed with the log console."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pyvmm.guest import client
from pyvmm.guest.protocol import GuestGone
from pyvmm.guest.protocol import GuestTimeout as NoAnswer
from pyvmm.testing.errors import GuestCommandError, GuestExited, GuestTimeout

if TYPE_CHECKING:
    from pyvmm.testing.vm import Vm

_POLL = 0.2
_T = TypeVar("_T")


class Result:
    """A command that has ended: its ``status``, ``stdout`` and ``stderr``; what is not UTF-8 is replaced."""

    def __init__(self, done: client.Completed) -> None:
        self.status = done.status
        self.raw_stdout = done.stdout
        self.stdout = done.stdout.decode("utf-8", "replace")
        self.stderr = done.stderr.decode("utf-8", "replace") or done.failure

    def __repr__(self) -> str:
        return f"Result(status={self.status}, stdout={self.stdout!r}, stderr={self.stderr!r})"


class GuestChannel:
    """The guest's commands and files. Whatever is asked first waits until the guest has booted.

    Every method raises GuestPanic, GuestHang or GuestExited as soon as that happens, and GuestTimeout after
    the test's time limit or its own ``timeout`` (seconds, scaled).
    """

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._client: client.Guest | None = None

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the agent in the guest answers."""
        __tracebackhide__ = True
        limit = self._vm.limit(timeout)
        self._await("the guest's agent", limit, lambda guest: guest.wait_ready(limit))
        self._vm.is_ready()

    def run(
        self,
        command: str | Sequence[str],
        *,
        input: bytes | str = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Run a command to its end, whatever its status; a str is for ``/bin/sh -c``."""
        __tracebackhide__ = True
        self.wait_ready()
        limit = self._vm.limit(timeout)
        data = input.encode() if isinstance(input, str) else input
        done = self._await(
            f"the end of {command!r}",
            limit,
            lambda guest: guest.run(command, input=data, env=env, cwd=cwd, timeout=limit),
        )
        return Result(done)

    def check(
        self,
        command: str | Sequence[str],
        *,
        input: bytes | str = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout: float | None = None,
    ) -> Result:
        """As ``run``. Raises GuestCommandError for any status but 0."""
        __tracebackhide__ = True
        result = self.run(command, input=input, env=env, cwd=cwd, timeout=timeout)
        if result.status:
            raise GuestCommandError(command, result.status, result.stdout, result.stderr)
        return result

    def put(
        self,
        source: bytes | str | Path,
        target: str,
        *,
        mode: int | None = None,
        timeout: float | None = None,
    ) -> None:
        """Write a file in the guest: these bytes, or this file of the test's machine."""
        __tracebackhide__ = True
        self.wait_ready()
        limit = self._vm.limit(timeout)
        self._await(
            f"the copying to {target}",
            limit,
            lambda guest: guest.put(source, target, mode=mode, timeout=limit),
        )

    def get(self, source: str, target: str | Path | None = None, *, timeout: float | None = None) -> bytes:
        """The content of a file in the guest, or nothing once it was written to ``target`` here."""
        __tracebackhide__ = True
        self.wait_ready()
        limit = self._vm.limit(timeout)
        return self._await(
            f"the copying of {source}", limit, lambda guest: guest.get(source, target, timeout=limit)
        )

    def wait_for(self, command: str | Sequence[str], *, timeout: float | None = None) -> Result:
        """Run a command again and again until its status is 0."""
        __tracebackhide__ = True
        limit = self._vm.limit(timeout)
        deadline = time.monotonic() + limit
        while True:
            result = self.run(command)
            if result.status == 0:
                return result
            if time.monotonic() > deadline:
                raise GuestTimeout(
                    f"{command!r} did not succeed: its last status was {result.status}, "
                    f"and it said {result.stderr!r}",
                    awaited=f"the success of {command!r}",
                    waited=limit,
                    tail=self._vm.log.tail(),
                )
            time.sleep(_POLL)

    def power_off(self) -> None:
        """Have the agent power the guest off, its disks synchronised. Does not wait: ``vm.wait()`` does."""
        __tracebackhide__ = True
        self.wait_ready()
        self._await("the power-off", None, lambda guest: guest.power_off())

    def interrupt(self) -> None:
        """The guest is gone or panicked: whoever waits for it stops doing so. From any thread."""
        if self._client is not None:
            self._client.abort("The guest is gone.")

    def close(self) -> None:
        """Close the connection, which ends the commands that still run."""
        if self._client is not None:
            self._client.close()

    def _connected(self) -> client.Guest:
        if self._client is None:
            self._client = client.Guest.connect(self._vm.agent_path())
            if self._vm.lost:  # it went before there was anybody to interrupt
                self.interrupt()
        return self._client

    def _await(self, what: str, limit: float | None, ask: Callable[[client.Guest], _T]) -> _T:
        """What ``ask`` gives; what went wrong meanwhile is raised as the tests' errors."""
        __tracebackhide__ = True
        started = time.monotonic()
        if self._vm.lost:
            raise self._vm.fatal(what, 0.0)
        try:
            return ask(self._connected())
        except NoAnswer as error:
            raise GuestTimeout(str(error), awaited=what, waited=limit, tail=self._vm.log.tail()) from None
        except GuestGone as error:
            self._vm.log.wait_end(self._vm.limit(1), self._vm.panic_ends)
            if self._vm.lost:
                raise self._vm.fatal(what, time.monotonic() - started) from None
            self._client = None  # a rebooted guest has a new agent
            raise GuestExited(
                str(error), awaited=what, waited=time.monotonic() - started, tail=self._vm.log.tail()
            ) from None
